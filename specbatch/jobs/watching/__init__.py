"""Looking at jobs from outside, by their files alone: status, logs, listings."""
