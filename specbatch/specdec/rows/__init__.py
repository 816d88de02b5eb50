"""The rows in flight: their state, their memory, who comes in and who must wait."""
