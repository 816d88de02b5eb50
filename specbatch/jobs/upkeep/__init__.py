"""Work on an output that exists: resume, retry, repair, clean up; and ``doctor``."""
