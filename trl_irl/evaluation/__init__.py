"""Sampling from a model, metrics of what it said, and the report that shows them."""
