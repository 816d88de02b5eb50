"""The parts of ``bench_exactness.py``."""
