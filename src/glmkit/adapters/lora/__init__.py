"""LoRA: low-rank updates beside frozen linear layers."""

from .lora_adapter import LoraAdapter

ADAPTER = LoraAdapter
