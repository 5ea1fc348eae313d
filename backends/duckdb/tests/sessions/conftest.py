"""Sessions on DuckDB with the echo model, a memory to copy, and programs in other processes."""

import hashlib
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import attrs
import numpy as np
import pytest

from megacontext_sdk import MemorySession
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.memory.lod import NodeId, Span


class Endless(EchoModel):
    """Never ends a reply by itself, so that replies cross as many blocks as they are asked for."""

    @property
    def info(self):
        return attrs.evolve(super().info, eos_ids=())


MODEL = Endless()


FACTS = [
    "The ferry to Aran leaves at nine.",
    "Olga keeps her spare key under the third flowerpot.",
    "A kilogram of saffron costs more than the donkey that carries it.",
    "The password of the shed is quince-marmalade-77.",
    "Long ago " + "the river froze, and the miller walked across it to sell his flour, " * 4,
]


def _open_session(path, **settings) -> MemorySession:
    arguments = {"model": MODEL, "storage": "duckdb", "strict": True, "w_max": 512, "sinks": ()}
    return MemorySession.open(path, **(arguments | settings))


def _fill(session: MemorySession, n_messages: int = 60) -> None:
    session.append(
        [
            {"role": "user", "content": f"Day {number}: rain on the hills, sheep in the valley."}
            for number in range(n_messages)
        ]
    )


def _layout_of(session: MemorySession) -> list[tuple[int, int]]:
    entries = session._parts.state.wc.entries
    return list(zip(entries.lod.tolist(), entries.index.tolist(), strict=True))


def _ids_of(session: MemorySession) -> np.ndarray:
    return session._parts.tree.token_ids(Span(0, session.stats().n_tokens))


def _tree_of(session: MemorySession) -> dict[str, object]:
    """Everything of a tree that may not depend on how appends were cut."""
    tree = session._parts.tree
    return {
        "ids": _ids_of(session).tobytes(),
        "tail": tree.tail.tolist(),
        "nodes": {lod: tree.n_nodes(lod) for lod in range(tree.top_lod + 1)},
        "stored": {lod: session._parts.journal.gist_count(0, lod) for lod in range(1, 5)},
        "gists": [
            tree.gists(lod, np.arange(tree.n_nodes(lod))).tobytes()
            for lod in range(1, tree.top_lod + 1)
        ],
    }


def _found(session: MemorySession) -> list[list[tuple[object, ...]]]:
    queries = ["When does the ferry leave?", "saffron donkey", "quince-marmalade-77", "miller"]
    return [
        [(hit.span, hit.message_id, hit.score, hit.text) for hit in session.search(query)]
        for query in queries
    ]


def _bytes_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "alice.mc"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A closed memory with facts, a pin and a reply; take a copy, never this one."""
    folder = tmp_path_factory.mktemp("kept") / "alice.mc"
    with _open_session(folder) as session:
        for fact in FACTS:
            session.append(fact)
        _fill(session)
        session.focus.pin((64, 96))
        session.generate("Which day had rain?", max_new_tokens=40)
    return folder


@pytest.fixture
def copy(kept, path):
    shutil.copytree(kept, path)
    return path


@pytest.fixture
def python():
    """Run a program to its end in a process of its own and return what it printed."""

    def run(code: str, *arguments: object) -> str:
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
        done = subprocess.run(
            [*command, *map(str, arguments)],
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
        )
        assert not done.returncode, done.stderr
        return done.stdout

    return run


def _counts_of(session: MemorySession) -> dict[tuple[int, int], list[int]]:
    tree = session._parts.tree
    nodes = [(lod, n) for lod in range(tree.top_lod + 1) for n in range(tree.n_nodes(lod))]
    counts = {node: list(tree.access_counts(NodeId(*node))) for node in nodes}
    return {node: pair for node, pair in counts.items() if any(pair)}


def _counted(trace) -> dict[tuple[int, int], list[int]]:
    """Replay the actions of a trace: (lod, index) -> [accesses, mutations]."""
    counts: dict[tuple[int, int], list[int]] = {}
    for event in trace:
        for action in getattr(event, "actions", ()):
            node = (action.lod, action.index)
            opened, entered = [node], []
            if action.kind == "reveal":
                opened = [(n, node[1] // 32 ** (n - 1)) for n in range(action.n_actions, 0, -1)]
            for lod, index in opened if action.kind != "collapse" else ():
                below = [(lod - 1, 32 * index + i) for i in range(32)]
                entered += [(0, index)] if lod == 1 else below
            for column, nodes in enumerate((entered or [node], opened)):
                for one in nodes:
                    counts.setdefault(one, [0, 0])[column] += 1
    return counts


@pytest.fixture
def open_session():
    return _open_session


@pytest.fixture
def fill():
    return _fill


@pytest.fixture
def layout_of():
    return _layout_of


@pytest.fixture
def ids_of():
    return _ids_of


@pytest.fixture
def tree_of():
    return _tree_of


@pytest.fixture
def found():
    return _found


@pytest.fixture
def bytes_of():
    return _bytes_of


@pytest.fixture
def counts_of():
    return _counts_of


@pytest.fixture
def counted():
    return _counted


@pytest.fixture
def facts():
    return FACTS
