"""Filling blanks token by token, and choosing tokens."""
