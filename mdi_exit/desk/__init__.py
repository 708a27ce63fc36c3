"""The operator's tools: orders from the command line, and the terminal view of a running deployment."""
