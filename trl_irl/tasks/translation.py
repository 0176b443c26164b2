"""Translations: a column to read, and one to write."""

from .task import Task


TASK = Task(prompt="{source}\n\nTranslation:", needs_columns=True, metrics=("bleu", "chrf"))
