"""One process with one device: loads the model pair and turns shards into parts; the Ray actor is its thin shell."""
