"""Imports are cheap: measured in a fresh process, best of several, processor time."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

MAX_SECONDS = 0.06
N_RUNS = 5
HEAVY = ("numpy", "torch", "transformers", "duckdb", "onnxruntime", "matplotlib", "rich", "typer")
MEASURE = """
import sys, time
start = time.process_time()
import {module}
print(time.process_time() - start)
print(",".join(name for name in {heavy!r} if name in sys.modules))
"""


def import_in_a_fresh_process(module):
    """Return (seconds, heavy modules that came along)."""
    code = MEASURE.format(module=module, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.split("\n")[:2]
    return float(seconds), heavy


def modules():
    """Return the front door, what plugin authors import, and every installed entry point."""
    installed = [p.module for p in entry_points(group="megacontext") if p.module.split(".")[0]]
    ours = [m for m in installed if m.startswith("megacontext_")]
    return [
        "megacontext_sdk",
        "megacontext_sdk.records",
        "megacontext_sdk.hookspecs",
        "megacontext_sdk._pytest",
        *sorted(ours),
    ]


@pytest.mark.parametrize("module", modules())
def test_a_module_everyone_imports_is_light(module):
    runs = [import_in_a_fresh_process(module) for _ in range(N_RUNS)]
    assert "" == runs[0][1]
    assert min(seconds for seconds, _ in runs) < MAX_SECONDS


def test_the_front_door_loads_no_room_of_the_house():
    code = (
        "import sys, megacontext_sdk\n"
        "late = ('attrs', 'msgspec', 'pluggy', 'importlib.metadata')\n"
        "print(sorted(m for m in sys.modules if m.startswith('megacontext_sdk.')))\n"
        "print([m for m in late if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ["[]", "[]"] == done.stdout.splitlines()


def test_the_core_never_brings_a_heavy_library():
    code = (
        "import sys\n"
        "import megacontext_sdk.session, megacontext_sdk.plugins, megacontext_sdk.events\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules and m != 'numpy'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]" == done.stdout.strip()
