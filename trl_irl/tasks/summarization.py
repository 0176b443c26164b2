"""Summaries: TL;DR posts (arXiv 2009.01325) as they are on the Hub, and any pair of columns as text and summary."""

from .task import Task


ROUGE = ("rouge",)
TLDR = Task(dataset_name="trl-lib/tldr", metrics=ROUGE)
SUMMARIZATION = Task(prompt="{source}\n\nTL;DR:", needs_columns=True, metrics=ROUGE)
