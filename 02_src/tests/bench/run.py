"""`python 02_src/tests/bench/run.py` runs the benchmarks from wherever it is called."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from bench.suite import main as run_suite

    run_suite()


if __name__ == "__main__":
    main()
