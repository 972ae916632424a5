"""From text to batches: sources, the token store, samples, packing, the loader."""
