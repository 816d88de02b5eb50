"""Resident models: ragged tokens in, logits out, over keys and values in slots or in pages."""
