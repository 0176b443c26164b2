"""Offline inverse soft-Q learning, on demonstrations alone."""
