"""Model directories on disk: one file per format."""
