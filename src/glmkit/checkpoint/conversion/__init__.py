"""From one published layout to another, tensor by tensor."""
