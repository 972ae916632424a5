"""Many prompts of a file, answered by one engine, in order, restartable."""
