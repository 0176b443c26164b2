"""What any trainer needs to survive: checkpoints, signals, bad steps, checks of rows, a clock."""
