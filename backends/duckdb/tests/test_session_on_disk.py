"""Sessions on DuckDB, end to end: reopening, kills, damage to caches, second writers, refusals."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path

import attrs
import msgspec
import numpy as np
import pytest

from megacontext_sdk import MemorySession, TextDelta, errors, events
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.builtin.sinks import InMemorySink
from megacontext_sdk.memory.lod import NodeId, Span, width


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


def open_session(path, **settings) -> MemorySession:
    arguments = {"model": MODEL, "storage": "duckdb", "strict": True, "w_max": 512, "sinks": ()}
    return MemorySession.open(path, **(arguments | settings))


def fill(session: MemorySession, n_messages: int = 60) -> None:
    session.append(
        [
            {"role": "user", "content": f"Day {number}: rain on the hills, sheep in the valley."}
            for number in range(n_messages)
        ]
    )


def layout_of(session: MemorySession) -> list[tuple[int, int]]:
    entries = session._parts.state.wc.entries
    return list(zip(entries.lod.tolist(), entries.index.tolist(), strict=True))


def ids_of(session: MemorySession) -> np.ndarray:
    return session._parts.tree.token_ids(Span(0, session.stats().n_tokens))


def tree_of(session: MemorySession) -> dict[str, object]:
    """Everything of a tree that may not depend on how appends were cut."""
    tree = session._parts.tree
    return {
        "ids": ids_of(session).tobytes(),
        "tail": tree.tail.tolist(),
        "nodes": {lod: tree.n_nodes(lod) for lod in range(tree.top_lod + 1)},
        "stored": {lod: session._parts.journal.gist_count(0, lod) for lod in range(1, 5)},
        "gists": [
            tree.gists(lod, np.arange(tree.n_nodes(lod))).tobytes()
            for lod in range(1, tree.top_lod + 1)
        ],
    }


def found(session: MemorySession) -> list[list[tuple[object, ...]]]:
    queries = ["When does the ferry leave?", "saffron donkey", "quince-marmalade-77", "miller"]
    return [
        [(hit.span, hit.message_id, hit.score, hit.text) for hit in session.search(query)]
        for query in queries
    ]


def bytes_of(folder: Path) -> dict[str, str]:
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
    with open_session(folder) as session:
        for fact in FACTS:
            session.append(fact)
        fill(session)
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


# --- row 1: a long history, read in another process -------------------------------------------

_READER = """
    import hashlib, sys
    import numpy as np
    from megacontext_sdk import MemorySession
    from megacontext_sdk.memory.lod import Span
    with MemorySession.open(sys.argv[1], model="echo", w_max=512, sinks=()) as session:
        tree = session._parts.tree
        digest = hashlib.sha256(tree.token_ids(Span(0, tree.n_tokens)).tobytes())
        for lod in range(1, tree.top_lod + 1):
            digest.update(tree.gists(lod, np.arange(tree.n_nodes(lod))).tobytes())
        print(digest.hexdigest(), tree.n_tokens, sum(tree.encode_calls.values()))
"""


def test_row01_a_hundred_thousand_tokens_are_byte_equal_in_a_new_process(path, python) -> None:
    ids = np.random.default_rng(1).integers(0, 256, 100_000).astype(np.int32)
    with open_session(path) as session:
        for at in range(0, len(ids), 8_192):
            session.append(ids[at : at + 8_192])
        tree = session._parts.tree
        digest = hashlib.sha256(ids.tobytes())
        for lod in range(1, tree.top_lod + 1):
            digest.update(tree.gists(lod, np.arange(tree.n_nodes(lod))).tobytes())
        assert 3 == tree.top_lod
    assert [digest.hexdigest(), "100000", "0"] == python(_READER, path).split()


# --- rows 4 and 5: how appends are cut, across reopening --------------------------------------


def test_row04_one_call_token_by_token_and_across_reopening_give_the_same_tree(tmp_path) -> None:
    ids = np.random.default_rng(4).integers(0, 256, 32 * 33 + 18).astype(np.int32)
    with open_session(tmp_path / "whole.mc") as session:
        session.append(ids)
        whole = tree_of(session)
    with open_session(tmp_path / "whole.mc") as session:
        assert whole == tree_of(session)
    at = 0
    for stop in (1, 33, 50, 1_000, 1_024, len(ids)):
        with open_session(tmp_path / "pieces.mc") as session:
            assert at % 32 == session.stats().tail_tokens
            if stop - at < 60:  # token by token
                for token_id in ids[at:stop]:
                    session.append([int(token_id)])
            else:
                session.append(ids[at:stop])
            at = stop
            session._parts.state.wc.check()
    with open_session(tmp_path / "pieces.mc") as session:
        assert whole == tree_of(session)
        assert {} == dict(session._parts.tree.encode_calls)


def test_row04_messages_across_reopening_are_found_as_in_one_call(tmp_path) -> None:
    with open_session(tmp_path / "whole.mc") as session:
        session.append([{"role": "user", "content": fact} for fact in FACTS])
        whole, answers = tree_of(session), found(session)
    assert all(answers)
    for fact in FACTS:
        with open_session(tmp_path / "pieces.mc") as session:
            session.append(fact)
    with open_session(tmp_path / "pieces.mc") as session:
        assert whole == tree_of(session)
        assert [[hit[2:] for hit in hits] for hits in answers] == [
            [hit[2:] for hit in hits] for hits in found(session)
        ]


@pytest.mark.parametrize("n_tail", [1, 31])
def test_row05_a_partial_tail_survives_reopening(path, n_tail) -> None:
    ids = np.random.default_rng(5).integers(97, 122, 32 + n_tail).astype(np.int32)
    with open_session(path) as session:
        session.append(ids)
    with open_session(path) as session:
        assert ids[32:].tolist() == session._parts.tree.tail.tolist()
        assert Span(32, 32 + n_tail) == session.focus.report().entries[-1].span
        session.append(ids[: 32 - n_tail])
        assert {1: 1} == dict(session._parts.tree.encode_calls)
        assert 0 == session.stats().tail_tokens


# --- row 9: killed at any moment --------------------------------------------------------------

_VICTIM = """
    import sys
    from megacontext_sdk import MemorySession
    with MemorySession.open(sys.argv[1], model="echo", w_max=512, sinks=()) as session:
        number = sum(m.role == "user" for m in session.messages())
        print("ready", flush=True)
        while True:
            text = f"Note {number}: the code word is w{number}w. " + "Rain again. " * (number % 9)
            receipt = session.append(text)
            print(number, receipt.span.start, receipt.span.end, receipt.message_ids[0], flush=True)
            number += 1
            if number % 7 == 0:
                reply = session.generate(max_new_tokens=40, seed=number, temperature=0.7)
                print("reply", reply.message_id, reply.text.encode().hex(), flush=True)
            if number % 11 == 0:
                session.flush()
"""


def check_survivors(session: MemorySession, receipts: dict[int, list[int]], replies) -> None:
    """Every acknowledged append and reply is there; tree, layout and index agree with them."""
    for number, (start, end, _) in receipts.items():
        assert f"Note {number}: the code word is w{number}w." in session.read((start, end))
    texts = {message.message_id: message.text for message in session.messages()}
    assert all(texts[message_id] == text for message_id, text in replies.items())
    state, tree = session._parts.state, session._parts.tree
    state.wc.check()
    assert tree.n_tokens == state.wc.n_tokens == session._parts.lexical.end
    assert 0 == tree.stats().n_missing_gists
    for lod in range(1, tree.top_lod + 1):
        assert np.isfinite(tree.gists(lod, np.arange(tree.n_nodes(lod)))).all()
    for number in random.Random(len(receipts)).sample(sorted(receipts), min(5, len(receipts))):
        (hit, *_) = session.search(f"w{number}w")
        assert f"w{number}w" in hit.text
    assert sorted(receipts) == list(range(len(receipts)))  # no number was given out twice


def test_row09_killed_at_random_moments_every_acknowledged_append_is_there(path) -> None:
    rng = random.Random(9)
    receipts: dict[int, list[int]] = {}
    replies: dict[int, str] = {}
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_VICTIM), str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out = b""
        for _ in range(rng.randrange(1, 40)):
            out += process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        rest, trouble = process.communicate()
        assert (-signal.SIGKILL, b"") == (process.returncode, trouble)
        for line in (out + rest).decode().splitlines(keepends=True)[1:]:
            if not line.endswith("\n"):
                continue
            if line.startswith("reply"):
                _, message_id, text = line.rstrip("\n").split(" ")
                replies[int(message_id)] = bytes.fromhex(text).decode()
            else:
                number, *where = map(int, line.split())
                receipts[number] = where
        with open_session(path) as session:
            messages = [m for m in session.messages() if m.role == "user"]
            for message in messages[len(receipts) :]:  # whole, though nobody was told
                receipts[len(receipts)] = [*message.span, message.message_id]
            check_survivors(session, receipts, replies)
            if not replies:
                continue
            reply = session.generate(max_new_tokens=3)
            replies[reply.message_id] = reply.text
    assert len(receipts) > 20


# --- rows 11 and 12: indices and counts over restarts -----------------------------------------


def test_row11_the_index_of_a_token_never_moves(copy) -> None:
    with open_session(copy) as session:
        spans = {m.message_id: (m.span, m.text) for m in session.messages()}
    for number in range(3):
        with open_session(copy) as session:
            session.generate(f"Day {number * 9}?", max_new_tokens=40)
            session.append("More. " * 40)
            now = {m.message_id: (m.span, m.text) for m in session.messages()}
            assert spans == {number: now[number] for number in spans}
            spans = now


def counted(trace) -> dict[tuple[int, int], list[int]]:
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


def counts_of(session: MemorySession) -> dict[tuple[int, int], list[int]]:
    tree = session._parts.tree
    nodes = [(lod, n) for lod in range(tree.top_lod + 1) for n in range(tree.n_nodes(lod))]
    counts = {node: list(tree.access_counts(NodeId(*node))) for node in nodes}
    return {node: pair for node, pair in counts.items() if any(pair)}


def test_row12_access_counts_equal_the_trace_over_reopening_and_a_kill(path) -> None:
    sink = InMemorySink(limit=100_000)
    for number in range(3):
        with open_session(path, sinks=(sink,)) as session:
            fill(session, 40)
            session.generate(f"Day {number * 9}?", max_new_tokens=40)
            session.focus.collapse((640, 1_024))
            session.focus.expand((640, 704))
            assert counted(sink.events) == counts_of(session)
    with open_session(path, sinks=(sink,)) as session:
        assert counted(sink.events) == counts_of(session)
        assert any(mutations for _, mutations in counts_of(session).values())


def test_row12_garbled_counts_start_again_from_zero_and_disturb_nothing(copy, caplog) -> None:
    (copy / "access.bin").write_bytes(b"MCACCES1" + b"\x07" * 50)
    with open_session(copy) as session:
        assert "access counts start again" in caplog.text
        fresh = counts_of(session)
        session.generate("Go on.", max_new_tokens=40)
        session.focus.expand((640, 672))
        expected = counts_of(session)
        assert expected != fresh
    with open_session(copy) as session:
        assert expected == counts_of(session)


# --- rows 13 and 14: other models and encoders ------------------------------------------------


class OtherWeights(EchoModel):
    def __init__(self) -> None:
        super().__init__(seed=8)


class OtherTokenizer(EchoModel):
    @property
    def info(self):
        return attrs.evolve(super().info, tokenizer_fingerprint="f" * 64)


@pytest.mark.parametrize(
    ("kind", "model"), [("base", OtherWeights()), ("tokenizer", OtherTokenizer())]
)
def test_row14_another_model_is_refused_and_no_byte_changes(copy, kind, model) -> None:
    before = bytes_of(copy)

    with pytest.raises(errors.ModelMismatchError, match="Open it with its own model") as caught:
        open_session(copy, model=model)

    assert kind == caught.value.kind
    assert caught.value.stored[:12] in str(caught.value)
    assert caught.value.given[:12] in str(caught.value)
    assert before == bytes_of(copy)
    with open_session(copy) as session:
        assert found(session)


def test_row13_another_shape_of_gists_is_a_version_of_its_own(copy) -> None:
    with open_session(copy) as session:
        ids, told = ids_of(session).tobytes(), found(session)
    with open_session(copy, gist_slots=2) as session:
        assert ids == ids_of(session).tobytes()
        session.generate("Day 9?", max_new_tokens=40)
        assert len(session.stats().gist_versions) > 1
        assert {2} == {e.cost for e in session.focus.report().entries if e.lod}
        assert told == found(session) or ids != ids_of(session).tobytes()
    with open_session(copy) as session:
        session._parts.state.wc.check()
        assert {1} == {e.cost for e in session.focus.report().entries if e.lod}


# --- row 16: one writer -----------------------------------------------------------------------

_SECOND = """
    import sys
    from megacontext_sdk import MemorySession, errors
    for options in ({}, {"read_only": True}, {"lock_timeout_seconds": 0.2}):
        try:
            MemorySession.open(sys.argv[1], model="echo", **options)
        except errors.SessionLockedError as error:
            owner = str(error.owner_pid)
            print(error.holder, owner, error.owner_host, owner in str(error))
"""


def test_row16_a_second_writer_is_refused_and_told_who_holds_the_memory(copy, python) -> None:
    with open_session(copy) as session:
        expected = f"writer {os.getpid()} {os.uname().nodename} True"
        assert [expected] * 3 == python(_SECOND, copy).splitlines()
        session.append("The first writer goes on.")
    with open_session(copy) as session:
        assert "The first writer goes on." == session.messages()[-1].text


def test_row16_a_second_session_in_the_same_process_is_refused_too(copy) -> None:
    with open_session(copy) as session:
        for read_only in (False, True):
            with pytest.raises(errors.SessionLockedError, match=str(os.getpid())):
                open_session(copy, read_only=read_only)
        with open_session(copy.with_name("bob.mc")) as other:  # another memory is another matter
            other.append("Bob was here.")
            session.append("Alice was here.")
        assert "Alice was here." == session.messages()[-1].text


# --- row 78: the same layout, the distribution of an exact window -----------------------------

_RESUMED = """
    import hashlib, json, sys
    import numpy as np
    from megacontext_sdk import MemorySession
    options = {"read_only": True} if len(sys.argv) > 2 else {}
    with MemorySession.open(sys.argv[1], model="echo", w_max=512, sinks=(), **options) as session:
        state = session._parts.state
        entries = state.wc.entries
        state.sync(np.zeros(0, np.int32), want_logits=False)
        print(json.dumps({
            "layout": [entries.lod.tolist(), entries.index.tolist()],
            "pins": [list(pin) for pin in state.wc.pins],
            "logits": state.pager.newest_logits(1)[-1].astype(float).tolist(),
            "kl": session.audit().kl_mean_nats,
        }))
"""


@pytest.mark.parametrize("arguments", [(), ("read only",)])
def test_row78_another_process_resumes_the_layout_and_predicts_as_exact_mode(
    path, python, arguments
) -> None:
    with open_session(path, kv_mode="exact") as session:
        for fact in FACTS:
            session.append(fact)
        fill(session)
        session.focus.pin((64, 96))
        session.generate("Who keeps a key under a flowerpot?", max_new_tokens=40)
        state = session._parts.state
        state.sync(np.zeros(0, np.int32), want_logits=False)
        expected = state.pager.newest_logits(1)[-1]
        entries = state.wc.entries
        layout = [entries.lod.tolist(), entries.index.tolist()]

    resumed = json.loads(python(_RESUMED, path, *arguments))

    assert layout == resumed["layout"]
    assert [[64, 96]] == resumed["pins"]
    assert 1e-9 > resumed["kl"]
    assert np.allclose(expected, resumed["logits"], atol=1e-3)


def test_pins_survive_even_where_the_layout_was_never_saved(path, python) -> None:
    code = """
        import os, sys
        from megacontext_sdk import MemorySession
        session = MemorySession.open(sys.argv[1], model="echo", w_max=512)
        session.append("The password of the shed is quince-marmalade-77. " * 40)
        session.focus.pin((64, 96))
        os._exit(0)
    """
    python(code, path)
    with open_session(path) as session:
        assert (Span(64, 96),) == session._parts.state.wc.pins
        assert [0] == [e.lod for e in session.focus.report().entries if e.pinned]
        session.focus.unpin((64, 96))
    with open_session(path) as session:
        assert () == session._parts.state.wc.pins


# --- row 94: a trace over several sessions ----------------------------------------------------


def test_row94_the_trace_of_several_sessions_replays_the_last_layout(path) -> None:
    sink = InMemorySink(limit=100_000)
    for number in range(3):
        with open_session(path, sinks=(sink,)) as session:
            fill(session, 40)
            session.generate(f"Day {number * 9}?", max_new_tokens=70)
            session.focus.expand((640, 704))
            expected = layout_of(session)
        if number == 1:
            (path / "cache/layout.msgpack").unlink()
    nodes: list[tuple[int, int]] = []
    for event in sink.events:
        if isinstance(event, events.AssembleEvent) and event.added:
            first = event.added[0]
            start = first[1] * width(first[0])
            nodes = [node for node in nodes if node[1] * width(node[0]) < start]
            nodes += [(lod, at + i) for lod, at, count in event.added for i in range(count)]
        for action in getattr(event, "actions", ()):
            play(nodes, action.kind, action.lod, action.index)
    assert expected == nodes


def play(nodes: list[tuple[int, int]], kind: str, lod: int, index: int) -> None:
    below = [(0, index)] if lod == 1 else [(lod - 1, 32 * index + i) for i in range(32)]
    if kind == "reveal":
        while (0, index) not in nodes:
            above = next(n for n in range(1, 9) if (n, index // 32 ** (n - 1)) in nodes)
            play(nodes, "expand", above, index // 32 ** (above - 1))
    elif kind == "expand":
        at = nodes.index((lod, index))
        nodes[at : at + 1] = below
    else:
        at = nodes.index(below[0])
        assert below == nodes[at : at + len(below)]
        nodes[at : at + len(below)] = [(lod, index)]


# --- reading only -----------------------------------------------------------------------------


def test_a_session_for_reading_reads_everything_and_changes_no_byte(copy) -> None:
    with open_session(copy) as session:
        told, layout, text = found(session), layout_of(session), session[:]
    before = bytes_of(copy)
    writes = (
        lambda s: s.append("x"),
        lambda s: s.append([]),
        lambda s: s.generate("x"),
        lambda s: s.stream("x"),
        lambda s: s.flush(),
        lambda s: s.focus.pin((0, 32)),
        lambda s: s.focus.unpin((64, 96)),
        lambda s: s.focus.expand((320, 352)),
        lambda s: s.focus.collapse((320, 352)),
    )
    with open_session(copy, read_only=True) as first, open_session(copy, read_only=True) as second:
        for session in (first, second):
            assert (told, layout, text) == (found(session), layout_of(session), session[:])
            assert session.audit().kl_mean_nats < 1e-9
            assert session.focus.report("Where is the key?").cost <= 512
            assert len(session.messages()) > 60
            for write in writes:
                with pytest.raises(errors.ReadOnlyError, match="open it for writing"):
                    write(session)
    assert before == bytes_of(copy)


# --- what is no memory ------------------------------------------------------------------------


def no_memory(path: Path) -> None:
    """There is nothing."""


def a_file(path: Path) -> None:
    path.write_text("my diary")


def a_database(path: Path) -> None:
    path.write_bytes(b"DUCK" * 4_096)


def another_directory(path: Path) -> None:
    path.mkdir()
    (path / "holiday.jpg").write_bytes(b"beach")


def a_link(path: Path) -> None:
    path.with_name("there").mkdir()
    path.symlink_to(path.with_name("there"))


def garbled_memory_file(path: Path) -> None:
    with open_session(path) as session:
        session.append("x")
    (path / "MEMORY").write_text('{"format": ' + "[" * 100_000)


@pytest.mark.parametrize(
    ("make", "arguments", "kind", "fix"),
    [
        (no_memory, {"create": False}, errors.SessionNotFoundError, "create=True"),
        (no_memory, {"read_only": True}, errors.SessionNotFoundError, "check the path"),
        (a_file, {}, errors.ConfigError, "choose another path"),
        (a_file, {"read_only": True}, errors.ConfigError, "choose another path"),
        (a_database, {}, errors.ConfigError, "choose another path"),
        (another_directory, {}, errors.ConfigError, "give a new or empty directory"),
        (another_directory, {"create": False}, errors.MegaContextError, ""),
        (a_link, {}, errors.ConfigError, "give the directory it points to"),
        (garbled_memory_file, {}, errors.CorruptError, "MEMORY"),
        (no_memory, {"w_max": 5}, errors.ConfigError, "64"),
        (no_memory, {"model": "gpt-9"}, errors.UnknownProviderError, "echo"),
        (no_memory, {"focus": "psychic"}, errors.UnknownProviderError, "heuristic"),
        (no_memory, {"durability": "maybe"}, errors.ConfigError, "sync"),
    ],
)
def test_what_is_no_memory_is_refused_by_name_and_left_as_it_is(
    path, make, arguments, kind, fix
) -> None:
    make(path)
    before = bytes_of(path.parent)

    with pytest.raises(kind) as caught:
        open_session(path, **arguments)

    assert fix in str(caught.value)
    assert before == bytes_of(path.parent)
    assert path.is_symlink() or path.exists() == bool(make is not no_memory)


def test_a_memory_of_another_storage_says_which(copy) -> None:
    text = (copy / "MEMORY").read_text()
    assert '"duckdb"' in text
    with pytest.raises(errors.ConfigError, match="w_max"):
        open_session(copy, w_max=10_000)
    assert text == (copy / "MEMORY").read_text()


def test_a_directory_nobody_may_write_is_refused_and_can_still_be_read(
    kept, path, python, request
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody without permissions")
    folder = Path(tempfile.mkdtemp())  # not below pytest's folder, which nobody else may enter
    request.addfinalizer(lambda: shutil.rmtree(folder))
    folder.chmod(0o755)
    alice = folder / "alice.mc"
    shutil.copytree(kept, alice)
    for found_path in (alice, *alice.rglob("*")):
        os.chown(found_path, 65_534, 65_534)
        found_path.chmod(0o500 if found_path.is_dir() else 0o400)
    before = bytes_of(alice)
    code = """
        import os, sys
        from megacontext_sdk import MemorySession, errors
        from megacontext_sdk.plugins import Plugins
        given = {"model": "echo", "w_max": 512, "plugins": Plugins.load()}
        with MemorySession.open(sys.argv[2], **given) as session:
            session.append("Everything is imported while we may still read the libraries.")
        os.setgid(65_534); os.setuid(65_534)
        for path in (sys.argv[1], os.path.dirname(sys.argv[1]) + "/new.mc"):
            try:
                MemorySession.open(path, **given)
            except errors.ReadOnlyError as error:
                print(error.path == path, "permissions" in str(error))
        with MemorySession.open(sys.argv[1], read_only=True, **given) as session:
            print(session.search("saffron")[0].text.startswith("A kilogram"))
    """
    assert ["True True", "True True", "True"] == python(code, alice, path).splitlines()
    assert before == bytes_of(alice)


# --- settings that change between two openings ------------------------------------------------


def test_row75_a_lower_budget_makes_room_on_reopening(copy) -> None:
    for w_max in (960, 320, 512):
        with open_session(copy, w_max=w_max) as session:
            stats = session.stats()
            assert stats.rows <= w_max - 64
            assert (Span(64, 96),) == session._parts.state.wc.pins
            assert session.generate("Go on.", max_new_tokens=34).usage.window_rows <= w_max


def test_row75_pins_too_large_for_a_lower_budget_are_refused_before_any_change(copy) -> None:
    with open_session(copy) as session:
        session.focus.unpin((64, 96))
        session.focus.pin((320, 448))
    before = bytes_of(copy)
    with pytest.raises(errors.BudgetError, match="pin") as caught:
        open_session(copy, w_max=256)
    assert caught.value.needed > caught.value.available
    assert before == bytes_of(copy)
    with open_session(copy) as session:
        assert (Span(320, 448),) == session._parts.state.wc.pins


# --- interruption -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_items", "how"), [(2, "leave"), (3, "close"), (20, "throw"), (40, "leave"), (50, "throw")]
)
def test_what_an_interrupted_stream_showed_is_there_after_reopening(path, n_items, how) -> None:
    shown = ""
    session = open_session(path)
    session.append("The ferry to Aran leaves at nine.")
    stream = session.stream("Tell me.", max_new_tokens=120)
    for _ in range(n_items):
        item = next(stream)
        shown += item.text if isinstance(item, TextDelta) else ""
    if how == "close":
        stream.close()
    if how == "throw":
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt)
    session.close()
    with open_session(path) as session:
        assert shown == session.messages()[-1].text
        assert "assistant" == session.messages()[-1].role
        assert session.generate("And now?", max_new_tokens=40).text == session.messages()[-1].text


# --- caches that were lost or spoilt ----------------------------------------------------------


def _garbage(n: int) -> bytes:
    return np.random.default_rng(n).bytes(n)


_LAYOUTS = {
    "deleted": None,
    "empty": b"",
    "noise": _garbage(700),
    "a number": msgspec.msgpack.encode(7),
    "a list": msgspec.msgpack.encode([1, 2]),
    "nothing": msgspec.msgpack.encode(None),
    "another version": msgspec.msgpack.encode({"version": 99}),
    "a map without columns": msgspec.msgpack.encode({"version": 1}),
}


@pytest.mark.parametrize("case", [*_LAYOUTS, "cut", "of a longer history", "that does not tile"])
def test_a_layout_file_that_cannot_be_used_costs_the_layout_only(copy, tmp_path, case) -> None:
    file = copy / "cache/layout.msgpack"
    good = file.read_bytes()
    raw = _LAYOUTS.get(case, good[: len(good) // 2])
    if case == "of a longer history":
        with open_session(tmp_path / "longer.mc") as session:
            fill(session, 150)
            session.focus.pin((4_000, 4_064))
        raw = (tmp_path / "longer.mc/cache/layout.msgpack").read_bytes()
    if case == "that does not tile":
        saved = msgspec.msgpack.decode(good)
        raw = msgspec.msgpack.encode(saved | {"index": saved["index"][8:] + saved["index"][:8]})
    file.unlink() if raw is None else file.write_bytes(raw)

    with open_session(copy) as session:
        session._parts.state.wc.check()
        assert (Span(64, 96),) == session._parts.state.wc.pins
        assert session.stats().n_tokens == session.focus.report().n_tokens
        session.generate("Go on.", max_new_tokens=34)
        expected = layout_of(session)
    with open_session(copy) as session:
        assert expected == layout_of(session)


def spoil(file: Path, how: str) -> None:
    if how == "deleted":
        file.unlink()
    elif how == "noise":
        file.write_bytes(_garbage(5_000))
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        raw = bytearray(file.read_bytes())
        raw[4_096:] = _garbage(len(raw) - 4_096)
        file.write_bytes(bytes(raw))


@pytest.mark.parametrize(
    ("how", "read_only"),
    [
        ("deleted", False),
        ("noise", False),
        ("empty", False),
        ("cut", False),
        ("garbled pages", False),
        ("noise", True),
    ],
)
def test_a_lost_lexical_index_is_built_again_and_answers_the_same(copy, how, read_only) -> None:
    with open_session(copy) as session:
        answers, n_rows = found(session), session._parts.lexical.n_rows
    assert all(answers)
    spoil(copy / "cache/lexical.sqlite", how)
    before = bytes_of(copy)
    with open_session(copy, read_only=read_only) as session:
        again, n_again = found(session), session._parts.lexical.n_rows
    if read_only:
        assert before == bytes_of(copy)
    assert answers == again
    assert n_rows == n_again
    with open_session(copy) as session:
        assert answers == found(session)


def test_without_any_cache_the_memory_is_whole(copy) -> None:
    with open_session(copy) as session:
        told, tree = found(session), tree_of(session)
    shutil.rmtree(copy / "cache")
    (copy / "access.bin").unlink()
    sink = InMemorySink()
    with open_session(copy, sinks=(sink,)) as session:
        assert (told, tree) == (found(session), tree_of(session))
        assert counted(sink.events) == counts_of(session)


# --- forks ------------------------------------------------------------------------------------


def test_a_forked_child_is_refused_and_harms_nothing(copy) -> None:
    with open_session(copy) as session:
        session.search("ferry")
        session.append("Before the fork.")
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # we mean to fork with a thread
            child = os.fork()
        if child == 0:
            for call in (lambda: session.append("x"), session.stats, lambda: session.search("x")):
                try:
                    call()
                    os.write(writer, b"went through\n")
                except errors.SessionClosedError as error:
                    os.write(writer, f"{error.reason} {'open it again' in str(error)}\n".encode())
            session.close()
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as lines:
            assert ["forked True"] * 3 == lines.read().splitlines()
        os.waitpid(child, 0)
        session.append("After the fork.")
    with open_session(copy) as session:
        assert ["Before the fork.", "After the fork."] == [m.text for m in session.messages()[-2:]]
