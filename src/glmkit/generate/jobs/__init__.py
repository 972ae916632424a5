"""Jobs of the engine: answers to a prompt, beams, the blanks of a text, and their parts."""
