"""Online inverse soft-Q learning, on demonstrations and on the policy's own completions."""
