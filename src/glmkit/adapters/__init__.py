"""Adapters on a built model: LoRA and per-layer prefixes."""
