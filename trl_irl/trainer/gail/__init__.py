"""Generative adversarial imitation learning: a discriminator, and RLOO on its reward."""
