"""What a task is: its data in TRL's prompt-completion format, and how an answer is scored."""
