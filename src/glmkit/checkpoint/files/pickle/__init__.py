"""Pickles read without running them: `read_pickle` is the only way in, inert values are all that comes out."""

from .machine import read_pickle

__all__ = ["read_pickle"]
