"""`python benches/run.py` from anywhere: the same as `python -m benches` in the checkout."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    runpy.run_module("benches", run_name="__main__", alter_sys=True)
