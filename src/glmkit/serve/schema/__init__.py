"""Requests, responses and chunks as they go over the wire: strict types that also make the OpenAPI document."""
