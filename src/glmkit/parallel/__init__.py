"""Processes and changes applied to a built model from outside."""
