"""What a training takes, from a model's config alone: memory per GPU by launcher, and floating-point operations."""
