"""The command `dina-lrm`: a verb a file. Each parses, calls the package and prints; torch loads when a verb runs."""
