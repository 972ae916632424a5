"""The way from text to batches: sources, the token store, samples, packing, the loader."""
