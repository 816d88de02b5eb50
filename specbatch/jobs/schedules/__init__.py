"""Schedules: which nights there are, what to do with each, and the daemon that does it."""
