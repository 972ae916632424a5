"""The transformers adapter: real `PreTrainedModel` and tokenizer classes that own the modules of the core."""
