"""Rows of instructions and conversations, in every published form, as the `Dialogue`s that fine-tuning learns from."""
