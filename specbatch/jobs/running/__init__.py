"""One run of a job: the Ray it runs on, its workers, the shell around the coordinator, its log."""
