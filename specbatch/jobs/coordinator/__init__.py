"""The coordinator: a pure state machine over shards and workers. Events go in, commands come out."""
