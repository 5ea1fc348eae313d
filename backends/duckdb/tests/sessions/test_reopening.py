"""Sessions on DuckDB over restarts: the tree, kills, indices, counts, versions, layouts."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap

import attrs
import numpy as np
import pytest

from megacontext_sdk import MemorySession, errors, events
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.builtin.sinks import InMemorySink
from megacontext_sdk.memory.lod import Span, width

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


def test_row01_a_hundred_thousand_tokens_are_byte_equal_in_a_new_process(
    open_session, path, python
) -> None:
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


def test_row04_one_call_token_by_token_and_across_reopening_give_the_same_tree(
    open_session, tree_of, tmp_path
) -> None:
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


def test_row04_messages_across_reopening_are_found_as_in_one_call(
    facts, open_session, tree_of, found, tmp_path
) -> None:
    with open_session(tmp_path / "whole.mc") as session:
        session.append([{"role": "user", "content": fact} for fact in facts])
        whole, answers = tree_of(session), found(session)
    assert all(answers)
    for fact in facts:
        with open_session(tmp_path / "pieces.mc") as session:
            session.append(fact)
    with open_session(tmp_path / "pieces.mc") as session:
        assert whole == tree_of(session)
        assert [[hit[2:] for hit in hits] for hits in answers] == [
            [hit[2:] for hit in hits] for hits in found(session)
        ]


@pytest.mark.parametrize("n_tail", [1, 31])
def test_row05_a_partial_tail_survives_reopening(open_session, path, n_tail) -> None:
    ids = np.random.default_rng(5).integers(97, 122, 32 + n_tail).astype(np.int32)
    with open_session(path) as session:
        session.append(ids)
    with open_session(path) as session:
        assert ids[32:].tolist() == session._parts.tree.tail.tolist()
        assert Span(32, 32 + n_tail) == session.focus.report().entries[-1].span
        session.append(ids[: 32 - n_tail])
        assert {1: 1} == dict(session._parts.tree.encode_calls)
        assert 0 == session.stats().tail_tokens


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


def test_row09_killed_at_random_moments_every_acknowledged_append_is_there(
    open_session, path
) -> None:
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


def test_row11_the_index_of_a_token_never_moves(open_session, copy) -> None:
    with open_session(copy) as session:
        spans = {m.message_id: (m.span, m.text) for m in session.messages()}
    for number in range(3):
        with open_session(copy) as session:
            session.generate(f"Day {number * 9}?", max_new_tokens=40)
            session.append("More. " * 40)
            now = {m.message_id: (m.span, m.text) for m in session.messages()}
            assert spans == {number: now[number] for number in spans}
            spans = now


def test_row12_access_counts_equal_the_trace_over_reopening_and_a_kill(
    counted, open_session, fill, counts_of, path
) -> None:
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


def test_row12_garbled_counts_start_again_from_zero_and_disturb_nothing(
    open_session, counts_of, copy, caplog
) -> None:
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
def test_row14_another_model_is_refused_and_no_byte_changes(
    open_session, found, bytes_of, copy, kind, model
) -> None:
    before = bytes_of(copy)

    with pytest.raises(errors.ModelMismatchError, match="Open it with its own model") as caught:
        open_session(copy, model=model)

    assert kind == caught.value.kind
    assert caught.value.stored[:12] in str(caught.value)
    assert caught.value.given[:12] in str(caught.value)
    assert before == bytes_of(copy)
    with open_session(copy) as session:
        assert found(session)


def test_row13_another_shape_of_gists_is_a_version_of_its_own(
    open_session, ids_of, found, copy
) -> None:
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


def test_row16_a_second_writer_is_refused_and_told_who_holds_the_memory(
    open_session, copy, python
) -> None:
    with open_session(copy) as session:
        expected = f"writer {os.getpid()} {os.uname().nodename} True"
        assert [expected] * 3 == python(_SECOND, copy).splitlines()
        session.append("The first writer goes on.")
    with open_session(copy) as session:
        assert "The first writer goes on." == session.messages()[-1].text


def test_row16_a_second_session_in_the_same_process_is_refused_too(open_session, copy) -> None:
    with open_session(copy) as session:
        for read_only in (False, True):
            with pytest.raises(errors.SessionLockedError, match=str(os.getpid())):
                open_session(copy, read_only=read_only)
        with open_session(copy.with_name("bob.mc")) as other:  # another memory is another matter
            other.append("Bob was here.")
            session.append("Alice was here.")
        assert "Alice was here." == session.messages()[-1].text


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
    facts, open_session, fill, path, python, arguments
) -> None:
    with open_session(path, kv_mode="exact") as session:
        for fact in facts:
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


def test_pins_survive_even_where_the_layout_was_never_saved(open_session, path, python) -> None:
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


def test_row94_the_trace_of_several_sessions_replays_the_last_layout(
    open_session, fill, layout_of, path
) -> None:
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
