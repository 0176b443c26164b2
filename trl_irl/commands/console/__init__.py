"""What the subcommands share: recipes and parsing, messages, the terminal of a training, the Hub."""
