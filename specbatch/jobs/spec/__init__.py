"""What a user asks for: the options of a job, the layers they come from, job files."""
