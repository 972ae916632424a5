"""The command line: main.py dispatches, one file per verb."""
