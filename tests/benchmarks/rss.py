"""How much memory a process takes that opens a memory and answers a question.

Run as `python -m tests.benchmarks.rss FOLDER W_MAX`; prints what it found, in MiB.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from megacontext_sdk import MemorySession
from tests.benchmarks.models import open_endless

__all__ = ["parse", "probe"]

_FIELDS = {"VmRSS:": "rss", "VmHWM:": "peak"}


def probe(path: Path, w_max: int) -> dict[str, float]:
    """Open, generate 64 tokens after a question, and return resident and peak memory."""
    with MemorySession.open(path, model=open_endless(), w_max=w_max, create=False) as session:
        session.generate("Where did the children go after dinner?", max_new_tokens=64)
        return _status()


def _status() -> dict[str, float]:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    rows = (line.split() for line in lines)
    return {_FIELDS[row[0]]: int(row[1]) / 1024 for row in rows if row[0] in _FIELDS}


def parse(text: str) -> dict[str, float]:
    """Return what `main` printed."""
    return json.loads(text.splitlines()[-1])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
