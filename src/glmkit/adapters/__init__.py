"""Adapters on a built model. Each sub-package is one kind: LoRA, and prefixes of keys and values."""
