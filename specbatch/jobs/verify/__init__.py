"""The second opinion on an output. Shares no code with what wrote it."""
