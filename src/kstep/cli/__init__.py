"""The command line: flags to typed settings, exit codes, logs, progress."""
