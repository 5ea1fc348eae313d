"""The tree over a real file: another process finds the same bytes, memory stays flat."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("megacontext_duckdb.store", reason="the DuckDB backend is not installed")

# Runs in a process of its own: `ingest` writes n tokens, `read` opens them again.
SCRIPT = """
import hashlib, json, resource, sys
from pathlib import Path
import numpy as np
from megacontext_duckdb.store import DuckDBStorage
from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.memory.journal import MessageRecord
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.memory.tree import MegaContextTree
from megacontext_sdk.memory.directory.vault import Fingerprints, open_memory
from megacontext_sdk.testing.gist import TableServices

what, path, n = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
services = TableServices(4096, 32)
memory = open_memory(
    path,
    backend="duckdb",
    factory=DuckDBStorage,
    fingerprints=Fingerprints(
        base=services.info.fingerprint, tokenizer=services.info.tokenizer_fingerprint
    ),
    vocab_size=4096,
    create=what == "ingest",
    read_only=what == "read",
)
tree = MegaContextTree(
    memory.journal, MeanGistEncoder(), services, read_only=what == "read",
    access_path=path / "access.bin",
)
tree.open()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
random = np.random.default_rng(1)
given = hashlib.sha256()
if what == "ingest":
    for at in range(0, n, 20_000):
        ids = random.integers(0, 4096, min(20_000, n - at)).astype(np.int32)
        given.update(ids.tobytes())
        record = MessageRecord(
            role=0, trust=3, flags=0, ts_us=0, n_tokens=len(ids), body=b""
        )
        tree.append(ids, [record]).wait()
    tree.flush()
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
ids, rows = hashlib.sha256(), hashlib.sha256()
for at in range(0, tree.n_tokens, 2**16):
    ids.update(tree.token_ids(Span(at, min(at + 2**16, tree.n_tokens))).tobytes())
for lod in range(1, tree.top_lod + 1):
    for at in range(0, tree.n_nodes(lod), 2048):
        nodes = np.arange(at, min(at + 2048, tree.n_nodes(lod)))
        rows.update(tree.gists(lod, nodes).tobytes())
print(json.dumps({
    "n_tokens": tree.n_tokens, "tail": len(tree.tail), "given": given.hexdigest(),
    "ids": ids.hexdigest(), "rows": rows.hexdigest(), "grown_kib": grown,
    "encoded": sum(tree.encode_calls.values()), "missing": tree.stats().n_missing_gists,
}))
tree.close()
memory.close()
"""


def run(what, path, n):
    arguments = [sys.executable, "-c", SCRIPT, what, str(path), str(n)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout)


def test_row01_a_million_tokens_reopen_byte_equal_in_a_new_process_with_flat_memory(tmp_path):
    small = run("ingest", tmp_path / "small.mc", 100_005)
    large = run("ingest", tmp_path / "large.mc", 1_000_005)
    again = run("read", tmp_path / "large.mc", 0)
    assert (1_000_005, 1_000_005 % 32) == (again["n_tokens"], again["tail"])
    assert large["given"] == large["ids"] == again["ids"]
    assert large["rows"] == again["rows"]
    assert 0 == again["encoded"] == again["missing"]
    assert small["rows"] != large["rows"]
    # Ten times the history may cost buffers and caches, never the history itself: it would be
    # 40 MB of ids as Python integers and 130 MB of decoded rows at the width of a real model.
    assert large["grown_kib"] - small["grown_kib"] <= 64 * 1024
