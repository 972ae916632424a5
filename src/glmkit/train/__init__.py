"""The trainer, its recipes, optimizers, checkpoints and metrics."""
