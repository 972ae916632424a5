"""Generation: prompts, decoding, jobs, and the engine that runs them."""
