"""What the engine runs: answers to a prompt, beams, the blanks of a text, and what they are made of."""
