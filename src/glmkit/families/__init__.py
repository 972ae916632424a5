"""One file per family, found by itself; base.py says what a family is."""
