"""Acceptance rows of whole sessions that need no member: the in-memory storage, the echo model."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import warnings

import attrs
import numpy as np
import pytest

from megacontext_sdk import MemorySession, TextDelta, errors
from megacontext_sdk.builtin.echo import EchoModel, EchoWindow
from megacontext_sdk.memory.lod import NodeId, Span
from megacontext_sdk.runtime.audit import kl_nats
from megacontext_sdk.runtime.pager import Pager
from megacontext_sdk.runtime.rows import gist_parts, is_token


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
    "Zanzibar exports cloves.",
    "x",
    "The password of the shed is quince-marmalade-77.",
    "Long ago " + "the river froze, and the miller walked across it to sell his flour, " * 4,
]


def open_session(**settings) -> MemorySession:
    arguments = {"model": MODEL, "storage": "memory", "strict": True, "w_max": 512} | settings
    return MemorySession.open(None, **arguments)


@pytest.fixture
def session():
    with open_session() as opened:
        yield opened


def fill(session: MemorySession, n_messages: int = 60) -> None:
    for number in range(n_messages):
        session.append(f"Day {number}: rain on the hills, and the sheep stayed in the valley.")


def ids_of(session: MemorySession) -> np.ndarray:
    return session._parts.tree.token_ids(Span(0, session.stats().n_tokens))


def layout_of(session: MemorySession) -> list[tuple[int, int]]:
    entries = session._parts.state.wc.entries
    return list(zip(entries.lod.tolist(), entries.index.tolist(), strict=True))


def tree_of(session: MemorySession) -> dict[str, object]:
    """Everything of a tree that may not depend on how appends were cut."""
    tree = session._parts.tree
    return {
        "ids": ids_of(session).tobytes(),
        "tail": tree.tail.tolist(),
        "blocks": tree.n_blocks,
        "nodes": {lod: tree.n_nodes(lod) for lod in range(1, tree.top_lod + 1)},
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


# --- rows 4 to 7: how appends are cut ---------------------------------------------------------


@pytest.mark.parametrize("cuts", [(1,), (50, 20, 100), (31, 1, 33), (32,), (128, 5)])
def test_row04_the_tree_does_not_depend_on_how_raw_ids_were_cut(cuts) -> None:
    ids = np.random.default_rng(4).integers(0, 256, 32 * 36 + 18).astype(np.int32)
    with open_session() as whole, open_session() as pieces:
        whole.append(ids)
        at = 0
        while at < len(ids):
            for size in cuts:
                if at < len(ids):
                    pieces.append(ids[at : at + size])
                    at += size
        assert tree_of(whole) == tree_of(pieces)
        assert [36, 1] == list(tree_of(pieces)["nodes"].values())
        pieces._parts.state.wc.check()


def test_row04_messages_in_one_call_or_each_in_its_own_are_the_same_memory() -> None:
    with open_session() as whole, open_session() as pieces:
        whole.append([{"role": "user", "content": text} for text in FACTS])
        for text in FACTS:
            pieces.append(text)
        assert tree_of(whole) == tree_of(pieces)
        assert found(whole) == found(pieces)
        assert all(found(whole))
        assert [m.span for m in whole.messages()] == [m.span for m in pieces.messages()]


def test_row04_generated_tokens_make_the_tree_that_appending_them_makes() -> None:
    with open_session() as told, open_session() as copied:
        fill(told, 12)
        told.generate("Go on.", max_new_tokens=80)
        ids = ids_of(told)
        copied.append(ids[:700])
        for token_id in ids[700:]:
            copied.append([int(token_id)])
        assert tree_of(told) == tree_of(copied)


@pytest.mark.parametrize("n_tail", [0, 1, 17, 31])
def test_row05_a_partial_tail_is_shown_in_full_and_never_encoded(n_tail) -> None:
    ids = np.random.default_rng(5).integers(97, 122, 64 + n_tail).astype(np.int32)
    with open_session() as session:
        session.append(ids)
        stats = session.stats()
        assert (n_tail, 2) == (stats.tail_tokens, stats.nodes[1])
        assert {1: 2} == dict(session._parts.tree.encode_calls)
        last = session.focus.report().entries[-1]
        if n_tail:
            assert (0, Span(64, 64 + n_tail), n_tail) == (last.lod, last.span, last.cost)
        assert session[:] == MODEL.tokenizer.decode(ids)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 128, 5000])
def test_row07_a_bulk_append_leaves_no_row_missing_at_any_level(n) -> None:
    with open_session() as session:
        session.append(np.random.default_rng(7).integers(0, 256, n).astype(np.int32))
        tree = session._parts.tree
        assert 0 == tree.stats().n_missing_gists
        for lod in range(1, tree.top_lod + 1):
            rows = tree.gists(lod, np.arange(tree.n_nodes(lod)))
            assert np.isfinite(rows).all()
            assert (np.abs(rows).sum(axis=2) > 0).all()


# --- row 53: what stands in the window --------------------------------------------------------


class WitnessWindow(EchoWindow):
    """Remembers which input row was written into which slot, through every move of slots."""

    def __init__(self, weights, capacity, trained_window) -> None:
        super().__init__(weights, capacity, trained_window)
        self.content = np.full((capacity, weights.table.shape[1]), np.nan, np.float32)

    def write(self, rows, positions, slots, want="nothing"):
        output = super().write(rows, positions, slots, want)
        values = self._weights.table[np.maximum(rows.token_ids, 0)]
        values[rows.token_ids < 0] = rows.vectors
        self.content[slots] = values
        return output

    def release(self, slots) -> None:
        super().release(slots)
        self.content[slots] = np.nan

    def relocate(self, source, target) -> None:
        super().relocate(source, target)
        self.content[target] = self.content[source]
        self.content[source] = np.nan

    def export(self, slots):
        block = super().export(slots)
        return attrs.evolve(block, payload=(block.payload, self.content[slots].copy()))

    def restore(self, block, slots, positions) -> None:
        inner, content = block.payload
        super().restore(attrs.evolve(block, payload=inner), slots, positions)
        self.content[slots] = content


class WitnessModel(Endless):
    def open_window(self, capacity):
        return WitnessWindow(self._weights, capacity, self._info.trained_window)


def check_rows(session: MemorySession) -> int:
    """Compare every live row with the tree's row for it, by key; return how many."""
    state, tree = session._parts.state, session._parts.tree
    keys, positions = state.pager.live()
    content = state.pager.window.content[: len(keys)]
    token = is_token(keys)
    expected = np.empty_like(content)
    ids = ids_of(session)
    expected[token] = MODEL.embed(ids[keys[token]])
    for at in np.flatnonzero(~token):
        lod, index, slot = (int(part) for part in gist_parts(keys[at]))
        expected[at] = tree.rows(NodeId(lod, index))[slot]
    assert np.array_equal(expected, content)
    order = np.argsort(positions)
    assert np.unique(positions).size == len(positions)
    starts = np.where(token, keys, [k if t else -1 for k, t in zip(keys, token, strict=True)])
    assert (np.diff(starts[order][token[order]]) > 0).all()
    return len(keys)


@pytest.mark.parametrize("kv_mode", ["exact", "stale", "seam"])
@pytest.mark.parametrize("gist_slots", [1, 2])
def test_row53_every_live_row_is_the_trees_row_for_its_node(kv_mode, gist_slots) -> None:
    kinds = set()
    with open_session(model=WitnessModel(), kv_mode=kv_mode, gist_slots=gist_slots) as session:
        told = session.append("Zanzibar exports cloves and sends them by ferry to the mainland.")
        fill(session, 50)
        session.append("A report nobody reads. " * 200)
        questions = ["What does Zanzibar export?", "Which day had rain?", "Day 7", "nobody reads"]
        for question in questions:
            session.generate(question, max_new_tokens=40)
            n_rows = check_rows(session)
            assert n_rows <= 512
        session.focus.pin(told.span)
        session.generate("x", max_new_tokens=33, remember=False)
        session.audit()
        assert check_rows(session) == session.stats().rows
        kinds |= {entry.lod for entry in session.focus.report().entries}
    assert {0, 1, 2} <= kinds


def test_row53_an_unremembered_reply_leaves_no_row_behind() -> None:
    with open_session(model=WitnessModel()) as session:
        fill(session, 30)
        session.generate("Keep this.", max_new_tokens=10)
        session.generate("Forget this.", max_new_tokens=40, remember=False)
        assert check_rows(session) == session.stats().rows
        session.append("Next.")
        session.generate("And?", max_new_tokens=2)
        check_rows(session)


# --- row 54 -----------------------------------------------------------------------------------


def test_row54_expanding_and_collapsing_gives_the_same_rows_and_ids_back(session) -> None:
    fill(session, 80)
    gist = next(entry for entry in session.focus.report().entries if entry.lod == 1)
    tree, before = session._parts.tree, layout_of(session)
    node = NodeId(1, gist.span.start // 32)
    ids, row = tree.token_ids(gist.span), tree.rows(node)
    session.focus.collapse((256, 1024)) if (2, 0) not in before else None

    session.focus.expand(gist.span)
    shown = [e for e in session.focus.report().entries if e.span == gist.span]
    session.focus.collapse(gist.span)
    session.focus.expand(gist.span)

    assert [0] == [entry.lod for entry in shown]
    assert np.array_equal(ids, tree.token_ids(gist.span))
    assert np.array_equal(row, tree.rows(node))
    assert np.array_equal(MODEL.embed(ids), tree.rows(NodeId(0, node.index)))


# --- row 73: what does not grow ---------------------------------------------------------------


def test_row73_window_rows_and_buffers_do_not_grow_with_the_history() -> None:
    sizes = []
    for n_tokens in (4_000, 40_000, 120_000):
        with open_session(gist_cache_rows=256, kv_cache_bytes=65_536) as session:
            session.append(np.full(n_tokens, ord("a"), dtype=np.int32))
            for question in ("Where?", "When?"):
                reply = session.generate(question, max_new_tokens=34)
                assert reply.usage.window_rows <= 512
            state, tree = session._parts.state, session._parts.tree
            window = state.pager.window
            buffers = (window._base_keys.nbytes, window._keys.nbytes, window._values.nbytes)
            assert state.wc.cost <= 512
            assert state.pager.cache.n_bytes <= 65_536
            assert len(tree._gists.cache) <= 256
            sizes.append((window.capacity, buffers, len(state.pager._keys)))
    assert sizes[0] == sizes[1] == sizes[2]


# --- row 76 -----------------------------------------------------------------------------------

_PROGRAM = """
    import hashlib
    from megacontext_sdk import MemorySession
    with MemorySession.open(None, model="echo", storage="memory", w_max=512, sinks=()) as session:
        for number in range(40):
            session.append(f"Day {number}: rain, hills, sheep, valley {number * 7}.",
                           metadata={"a": 1, "b": 2})
        reply = session.generate("Which valley?", max_new_tokens=70, temperature=0.9, seed=3)
        tree = session._parts.tree
        ids = tree.token_ids(tree.node_at(0, 1).span).tobytes()
        entries = session._parts.state.wc.entries
        print(hashlib.sha256(ids + session[:].encode() + entries.lod.tobytes()
                             + entries.index.tobytes()).hexdigest())
        print(reply.text, [(a.kind, a.node, a.score) for a in session.focus.history()])
"""


def test_row76_runs_agree_in_processes_with_other_hash_seeds() -> None:
    def run(seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(_PROGRAM)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    first = run("0")
    assert first
    assert first == run("12345")


# --- interruption -----------------------------------------------------------------------------


class Interrupting(Endless):
    """Raises in the middle of decoding, as Ctrl-C does."""

    after = 10**9

    def open_window(self, capacity):
        window, model = super().open_window(capacity), self
        step = window.step

        def interrupted(token_id, position, slot):
            model.after -= 1
            if model.after < 0:
                raise KeyboardInterrupt
            return step(token_id, position, slot)

        window.step = interrupted
        return window


@pytest.mark.parametrize("after", [0, 1, 20, 31, 45, 70])
def test_row75_an_interrupt_inside_a_step_keeps_what_was_shown(after) -> None:
    model = Interrupting()
    with open_session(model=model) as session:
        fill(session, 20)
        shown = ""
        model.after = after
        stream = session.stream("Go on.", max_new_tokens=200)
        with contextlib.suppress(KeyboardInterrupt):
            for item in stream:
                shown += item.text if isinstance(item, TextDelta) else ""
        assert model.after < 0
        assert [] == list(stream)
        model.after = 10**9

        assert shown == session.messages()[-1].text
        assert "assistant" == session.messages()[-1].role
        session._parts.state.wc.check()
        reply = session.generate("And now?", max_new_tokens=40)
        assert reply.text == session.messages()[-1].text
        check_served(session)


def check_served(session: MemorySession) -> None:
    """The window that an interrupt left behind is one that a fresh computation would give."""
    state = session._parts.state
    assert session.audit().kl_mean_nats < 1.0
    state.sync(np.zeros(0, np.int32), want_logits=True, rebuild=True)
    fresh = Pager(
        MODEL.open_window(608), state.rows, state.scheme, MODEL.info, mode="exact", cache_bytes=0
    )
    fresh.sync(state.wc.layout())
    served, expected = state.pager.newest_logits(8), fresh.newest_logits(8)
    assert kl_nats(served, expected).max() < 1e-6


def test_row78_the_window_after_many_swaps_serves_what_exact_mode_serves() -> None:
    with open_session(kv_mode="exact") as session:
        fill(session, 40)
        for number in range(6):
            session.generate(f"Day {number * 5}?", max_new_tokens=35)
        state = session._parts.state
        state.sync(np.zeros(0, np.int32), want_logits=False)
        fresh = Pager(
            MODEL.open_window(608),
            state.rows,
            state.scheme,
            MODEL.info,
            mode="exact",
            cache_bytes=0,
        )
        fresh.sync(state.wc.layout())
        assert kl_nats(state.pager.newest_logits(8), fresh.newest_logits(8)).max() < 1e-6


# --- forks ------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_is_told_to_open_the_memory_again() -> None:
    calls = (
        lambda s: s.append("x"),
        lambda s: s.generate("x", max_new_tokens=1),
        lambda s: s.search("ferry"),
        lambda s: s.stats(),
        lambda s: s[:],
        lambda s: s.focus.report(),
    )
    with open_session() as session:
        session.append("The ferry to Aran leaves at nine.")
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # we mean to fork with a thread
            child = os.fork()
        if child == 0:
            for call in calls:
                try:
                    call(session)
                    os.write(writer, b"went through\n")
                except errors.SessionClosedError as error:
                    os.write(writer, f"{error.reason}: {'open it again' in str(error)}\n".encode())
            session.close()
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as lines:
            told = lines.read().splitlines()
        os.waitpid(child, 0)
        assert ["forked: True"] * len(calls) == told
        assert session.search("ferry")
        session.append("The parent goes on.")
