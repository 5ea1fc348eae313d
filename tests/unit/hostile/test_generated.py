"""T3 and T18: thousands of generated bad calls to the public API, on one open session per backend.

Each call either does what it says or raises an error of our tree (or the TypeError Python itself
raises for a wrong keyword), and an error changes nothing. No planted canary appears in an error, a
log or a repr, and nothing opens a socket.
"""

import logging
import random
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from megacontext_sdk import MemorySession, MemoryStore, NodeId, Span, errors

N_CASES = 6_000  # per backend; there are at least two
CANARY = "canary-heliotrope-9137"


class Loud:
    """Raises from everything an error message might do with it."""

    def __repr__(self):
        raise RuntimeError("repr of a hostile value ran")

    __str__ = __format__ = __len__ = __iter__ = __bool__ = __hash__ = __repr__


class Text(str):
    """A subclass, as marked-up text is one."""

    __slots__ = ()


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


NUMBERS = [0, 1, -1, 3, 2**31, 2**63, -(2**64), 10**4_400, True, False]
NUMBERS += [0.0, 1.5, -0.0, float("nan"), float("inf"), -float("inf"), 1e308, 1 + 2j]
NUMBERS += [np.int64(-4), np.float32("nan"), np.bool_(1), np.float64(2)]
TEXTS = ["", " ", "\n", "x", "\ud800", "a\0b", "é\u202e", "'); DROP TABLE t;--", "{{7*7}}", "None"]
TEXTS += ["x" * 300, "../x", "<|im_start|>system", "__import__('os')", "a' OR 1=1", "%s%n{0}"]
TEXTS += [Text("marked"), "s3://k:s@h/x", "user", "system", "\\", "CON", "alice\n", "\u0000\uffff"]
THINGS = [None, b"", b"\xff", bytearray(b"q"), memoryview(b"ab"), set(), object(), Loud(), Loud]
THINGS += [Ellipsis, NotImplemented, range(5), slice(0, 3), lambda: 1, Exception("x"), random]
THINGS += [Span(0, 1), Span(3, 10**15), NodeId(0, 1), Path("x"), Path("a\0b"), timedelta(1)]
THINGS += [datetime(2020, 1, 1), datetime(1, 1, 1, tzinfo=UTC), timedelta.max]  # noqa: DTZ001
THINGS += [np.array([1, 2]), np.array([[1]]), np.array([1.5]), np.array(["a"]), np.zeros(0)]
THINGS += [np.array(None, dtype=object), nested(100), nested(3_000), {"$ne": ""}, {"lc": 1}]
THINGS += [{"role": "user"}, {"content": "x", "role": "root"}, [{"content": "fine"}, 5]]
THINGS += ["x" * 2**18]


def hostile(rng, depth=0):
    """Return any value."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(NUMBERS)
    if kind < 0.55:
        return rng.choice(TEXTS)
    if kind < 0.8 or depth > 2:
        return rng.choice(THINGS)
    size = rng.randrange(4)
    if kind < 0.9:
        return rng.choice([list, tuple])(hostile(rng, depth + 1) for _ in range(size))
    keys = [*TEXTS, "role", "content", "source", "metadata", "trust", 7, None]
    return {rng.choice(keys): hostile(rng, depth + 1) for _ in range(size)}


WHERE = {"source": "nobody"}
SPAN = {"span": (0, 4)}
SESSION = {
    "append": {
        "content": f"The tide is out. {CANARY}",
        "role": "user",
        "source": "notes",
        "trust": 1,
        "metadata": {"k": CANARY},
        "timestamp": datetime(2026, 1, 1, tzinfo=UTC),
        "idempotency_key": CANARY,
    },
    "generate": {
        "prompt": CANARY,
        "max_new_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "seed": 1,
        "stop": "z",
        "remember": False,
    },
    "search": {"query": CANARY, "k": 2},
    "read": SPAN,
    "__getitem__": {"key": slice(0, 4)},
    "messages": {"start": 0, "stop": 2},
    "audit": {"n_rows": 2},
    "snapshot": {"name": "one"},
    "restore": {"name": "nowhere"},
    "fork": {"path": "made.mc", "at": "nowhere"},
    "forget": {
        "message_ids": None,
        "span": None,
        "where": {"metadata": {"k": CANARY + "?"}},
        "before": None,
        "everything": False,
        "dry_run": True,
        "cascade": None,
    },
    "export": {"path": "nowhere/made", "format": "bundle"},
    "focus.report": {"query": CANARY},
    "focus.pin": SPAN,
    "focus.unpin": SPAN,
    "focus.expand": SPAN,
    "focus.collapse": SPAN,
}
COSTLY = {"generate": 0.25, "audit": 0.25, "fork": 0.1, "focus.report": 0.5, "restore": 0.3}
OPEN = {
    "path": "nobody.mc",
    "model": "echo",
    "storage": "memory",
    "focus": "recency",
    "gist": "mean",
    "config": None,
    "read_only": True,
    "create": False,
    "at": None,
    "plugins": None,
    "w_max": 512,
    "recent_tokens": 64,
    "durability": "sync",
    "lock_timeout_seconds": 0.0,
    "sinks": (),
    "gist_dtype": "f2",
    "strict": True,
}
ELSEWHERE = {
    "MemorySession.open": (lambda: MemorySession.open, OPEN),
    "MemorySession.load": (
        lambda: MemorySession.load,
        {"source": "nowhere", "into": "made.mc", "model": "echo", "storage": "memory"},
    ),
    "MemorySession.recover": (
        lambda: MemorySession.recover,
        {"path": "nowhere", "storage": "memory", "dry_run": True},
    ),
    "MemoryStore": (lambda: MemoryStore, {"root": "nowhere", "namespace": "acme"}),
    "MemoryStore.session": (
        lambda: MemoryStore(".", namespace="acme", model="echo").session,
        {"name": "bob", "create": False},
    ),
    "MemoryStore.delete": (lambda: MemoryStore(".", namespace="acme").delete, {"name": "bob"}),
}


def cases(rng, session, n):
    """Yield (name, call, positional, keywords), mostly with one or two hostile values."""
    names = [name for name in SESSION if hasattr(session, name.partition(".")[0])]
    others = [name for name in ELSEWHERE if _is_there(name)]
    while n:
        name = rng.choice(others if rng.random() < 0.15 else names)
        if rng.random() > COSTLY.get(name, 1.0):
            continue
        n -= 1
        call, valid = _found(name, session)
        yield name, call, *_arguments(rng, name, valid)


def _found(name, session):
    if name in ELSEWHERE:
        target, valid = ELSEWHERE[name]
        return target(), valid
    call = session
    for part in name.split("."):
        call = getattr(call, part)
    return call, SESSION[name]


def _arguments(rng, name, valid):
    first = next(iter(valid))
    keywords = {
        key: value
        for key, value in valid.items()
        if key in {first, "model"} or rng.random() < 0.6  # the default model takes long to open
    }
    for key in rng.sample(sorted(valid), rng.choice([1, 1, 2]) if len(valid) > 1 else 1):
        keywords[key] = hostile(rng)
    if name == "forget" and keywords.get("dry_run") is not True:
        keywords["dry_run"] = rng.choice(["no", 0, None, Loud()])  # False would forget
    positional = [] if name == "forget" else [keywords.pop(first)]  # that takes keywords only
    if rng.random() < 0.03:
        keywords[rng.choice(["", "colour", "Content", "dry-run"])] = hostile(rng)
    if rng.random() < 0.02:
        positional = rng.choice([[], [*positional, *[0] * 9]])
    return positional, keywords


def _is_there(name):
    kind, _, method = name.partition(".")
    return kind == "MemoryStore" or hasattr(MemorySession, method)


def light(session):
    """What an error may not change; the files are compared at the end."""
    parts = session._parts
    journal = parts.journal
    return (journal.seq, journal.chain, journal.n_tokens, dict(journal.settings), parts.lexical.end)


def described(error):
    """Everything an error says, to people and to programs."""
    facts = [errors.shown(value) for value in vars(error).values()]
    return f"{error!s} {facts} {getattr(error, '__notes__', '')}"


class Judge:
    """Makes calls, and notes what was not as promised."""

    def __init__(self, session):
        self.session = session
        self.wrong = []
        self.n_refused = self.n_done = 0

    def judge(self, name, call, positional, keywords):
        before = light(self.session)
        problem = ""
        try:
            result = call(*positional, **keywords)
        except errors.MegaContextError as error:
            self.n_refused += 1
            if CANARY in described(error):
                problem = f"shows the canary: {described(error)[:300]}"
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is untyped
            self.n_refused += 1
            if not (isinstance(error, TypeError) and "argument" in str(error)):
                problem = f"untyped: {error!r:.300}"
        else:
            self.n_done += 1
            before = self._done(name, result, before)
        if before != light(self.session):
            problem += "changed the memory"
        if problem:
            said = {key: errors.shown(value) for key, value in keywords.items()}
            self.wrong.append((name, problem, errors.shown(positional), said))

    def _done(self, name, result, before):
        """Return the state to compare with after a call that was answered."""
        if isinstance(result, MemorySession):
            result.close()
        if name == "append" and result.message_ids and not result.duplicate:
            assert before[2] + result.span.n_tokens == light(self.session)[2]
        return before if name in READS else light(self.session)


@pytest.fixture
def no_sockets(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("something opened a socket")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def test_generated_calls_do_what_they_say_or_raise_a_typed_error(
    backend, open_session, tmp_path, monkeypatch, caplog, no_sockets
):
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    session = open_session(backend, deep / "alice.mc")
    session.append(f"Known from the start: {CANARY}.", metadata={"k": CANARY}, source="s")
    caplog.set_level(logging.DEBUG)
    judge = Judge(session)
    for case in cases(random.Random(f"hostile {backend}"), session, N_CASES):
        judge.judge(*case)
    assert "" == "\n".join(map(str, judge.wrong[:20]))
    assert judge.n_refused > judge.n_done > 100
    assert CANARY not in caplog.text
    assert CANARY not in repr(session)
    before = light(session)
    session.close()
    if backend != "memory":
        assert before == light(open_session(backend, deep / "alice.mc"))


def test_a_filter_key_pasted_into_sql_is_caught_by_the_same_calls(quick, pasted_sql):
    judge = Judge(quick)
    for name, *case in cases(random.Random("hostile memory"), quick, N_CASES):
        if name == "forget":
            judge.judge(name, *case)
    assert any("OperationalError" in problem for _name, problem, *_ in judge.wrong)


READS = {"search", "read", "__getitem__", "messages", "audit", "forget", *ELSEWHERE}
READS |= {"focus.report"}
