"""glm demo: the standard library as text, count baselines, the report."""
