"""The command line: its commands, their options, their help, and the documents that they print."""
