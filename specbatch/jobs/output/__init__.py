"""What a job writes about itself beside its parts, and how that is read back."""
