"""Rows 12, 75 and 78: a session killed between commit and decode goes on as if it had not been."""

import json
import signal
import subprocess
import sys
import textwrap

import numpy as np

from megacontext_sdk import MemorySession
from megacontext_sdk.memory.lod import NodeId, Span

_VICTIM = """
    import json, os, signal, sys
    from megacontext_sdk import MemorySession
    from megacontext_sdk.memory.lod import NodeId
    session = MemorySession.open(
        sys.argv[1], model="echo", w_max=512, sinks=(), kv_mode="exact", strict=True
    )
    for number in range(60):
        session.append(f"Day {number}: rain on the hills, and the sheep stayed in the valley.")
    session.focus.pin((640, 672))
    session.generate("Which day had rain?", max_new_tokens=40)
    session.flush()
    tree = session._parts.tree
    nodes = [(lod, n) for lod in range(tree.top_lod + 1) for n in range(tree.n_nodes(lod))]
    counts = [[*node, *tree.access_counts(NodeId(*node))] for node in nodes]
    session.append("And which day was dry?")
    print(json.dumps({
        "n_tokens": tree.n_tokens,
        "tail": tree.tail.tolist(),
        "text": session[:],
        "counts": [count for count in counts if any(count[2:])],
    }), flush=True)
    stream = session.stream(max_new_tokens=40)
    next(stream)  # the focus has changed and nothing is decoded
    os.kill(os.getpid(), signal.SIGKILL)
"""


def open_session(path):
    return MemorySession.open(path, model="echo", w_max=512, sinks=(), kv_mode="exact", strict=True)


def killed(path):
    """Run the victim to its death; return what it said before."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(_VICTIM), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (-signal.SIGKILL, "") == (done.returncode, done.stderr)
    return json.loads(done.stdout)


def test_row75_a_kill_between_commit_and_decode_loses_neither_tail_nor_pins_nor_counts(tmp_path):
    path = tmp_path / "alice.mc"
    said = killed(path)
    with open_session(path) as session:
        tree, state = session._parts.tree, session._parts.state
        assert (said["n_tokens"], said["tail"]) == (tree.n_tokens, tree.tail.tolist())
        assert said["text"] == session[:]
        assert (Span(640, 672),) == state.wc.pins
        assert 0 == tree.stats().n_missing_gists
        assert state.wc.n_tokens == tree.n_tokens == session._parts.lexical.end
        # Row 12: what was flushed is there; opening itself may have added to it.
        assert said["counts"]
        for lod, index, accesses, mutations in said["counts"]:
            now = tree.access_counts(NodeId(lod, index))
            assert now[0] >= accesses
            assert now[1] >= mutations
        # The window is built anew and serves what an exact one does.
        reply = session.generate(max_new_tokens=20)
        assert 0 < reply.usage.generated_tokens <= 20
        assert session.audit().kl_mean_nats < 1e-6
        assert state.pager.n_live == state.wc.cost


def test_row78_after_a_kill_the_tree_is_that_of_a_session_that_was_never_killed(tmp_path):
    path = tmp_path / "alice.mc"
    killed(path)
    with open_session(path) as session, open_session(tmp_path / "bob.mc") as whole:
        whole.append(session._parts.tree.token_ids(Span(0, session.stats().n_tokens)))
        one, other = session._parts.tree, whole._parts.tree
        for lod in range(1, one.top_lod + 1):
            nodes = np.arange(one.n_nodes(lod))
            assert one.gists(lod, nodes).tobytes() == other.gists(lod, nodes).tobytes()
