"""Diagnosis of a model directory: what it holds, lacks and needs, as findings for people and for scripts."""
