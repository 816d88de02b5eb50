"""The commit protocol in a deterministic simulator: real code, simulated service, clock and processes."""
