"""The command line: arguments to one library call."""
