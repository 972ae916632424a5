"""Parts that several families share: tables of layouts, tokenizer machinery, chat rules."""
