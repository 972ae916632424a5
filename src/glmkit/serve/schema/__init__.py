"""What goes over the wire: requests, responses and chunks, as strict types that also make the OpenAPI document."""
