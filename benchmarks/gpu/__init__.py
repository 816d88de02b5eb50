"""The parts of ``benchmarks/bench_gpu.py``: what is measured, on which models, against which peers, and the report."""

import importlib.util
import sys
from pathlib import Path

# A machine with a GPU is often lent bare: the checkout runs there without being installed.
if importlib.util.find_spec("specbatch") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
