"""Conversion of one published layout to another, tensor by tensor."""
