"""The objective: which spans of a text are masked, what the model reads and predicts, and the loss."""
