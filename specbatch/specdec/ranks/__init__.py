"""A target that several processes share, each with a device of its own."""
