"""What was measured of a pair on a machine, and what follows from it for a job."""
