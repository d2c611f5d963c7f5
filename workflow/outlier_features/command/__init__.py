"""The command `outlier-features`, a module for each of its subcommands."""
