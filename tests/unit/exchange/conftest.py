"""Memories to export and load: a small store on disk, histories with all a bundle can hold."""

import os
import random
import subprocess
import sys
from hashlib import blake2b
from itertools import pairwise

import attrs
import msgspec
import numpy as np
import pytest

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import (
    COMMIT,
    MESSAGE,
    Batch,
    Capabilities,
    GistBatch,
    Header,
)
from megacontext_sdk.errors import CorruptError
from megacontext_sdk.memory.chain import (
    FLAG_CONTINUES,
    FLAG_FORGOTTEN,
    MessageRecord,
    Position,
    link,
)
from megacontext_sdk.memory.directory.manifest import MemoryMeta
from megacontext_sdk.memory.directory.opened import Fingerprints
from megacontext_sdk.memory.directory.replay import NOTHING, Redaction, copy_commits, copy_gists
from megacontext_sdk.memory.exchange.bundle_format import DIGEST_BYTES, PREFIX
from megacontext_sdk.memory.inflight import Outcome, pending_commit
from megacontext_sdk.memory.journal import Journal
from megacontext_sdk.memory.writer import batch_of
from megacontext_sdk.messages import MessageBody, encode_body

PRINTS = Fingerprints("a" * 64, "b" * 64)
VOCAB_SIZE = 50_000
WIDTH = 8


class FileStorage(InMemoryStorage):
    """The in-memory store with one file behind it, written whole at each flush."""

    capabilities = Capabilities(durability=frozenset({"sync"}))

    def open(self, mode, header):
        super().open("create", header)
        if mode == "create":
            self.path.mkdir(mode=0o700)
            self.flush()
        elif not (self.path / "rows").exists():
            raise CorruptError("the rows are missing", where="rows", offset=None, have_seq=None)
        else:
            self._load()
        self._mode = mode

    def flush(self):
        super().flush()
        gists = [
            [*key, *(part.all.tobytes() for part in (level.nodes, level.trust, level.rows))]
            for key, level in self._gists.items()
        ]
        parts = [part.all.tobytes() for part in (self._commits, self._blocks, self._messages)]
        raw = msgspec.msgpack.encode([*parts, self._state.tail, self._bodies, gists])
        (self.path / "rows").write_bytes(raw)

    def _load(self):
        raw = msgspec.msgpack.decode((self.path / "rows").read_bytes())
        commits, blocks, messages, tail, bodies, gists = raw
        if commits:
            batch = Batch(
                commits=np.frombuffer(commits, COMMIT),
                blocks=np.frombuffer(blocks, np.uint8).reshape(-1, self._block_bytes),
                tail=tail,
                messages=np.frombuffer(messages, MESSAGE),
                bodies=tuple(bodies),
            )
            super().commit(batch)
        for version, lod, nodes, trust, rows in gists:
            numbers = np.frombuffer(nodes, np.uint64)
            super().put_gists(
                GistBatch(
                    version=version,
                    lod=lod,
                    nodes=numbers,
                    trust=np.frombuffer(trust, np.uint8),
                    rows=np.frombuffer(rows, np.uint8).reshape(len(numbers), -1),
                )
            )


def record(n_tokens, text=None, **fields):
    """Return a message row of a user, with a text unless there is none."""
    values = {"role": 0, "trust": 3, "flags": 0, "ts_us": 1_700_000_000_000_000} | fields
    body = values.pop("body", None)
    if body is None:
        body = encode_body(MessageBody(text=text, source="test", metadata={"n": n_tokens}))
    return MessageRecord(n_tokens=n_tokens, body=body, **values)


def meta_of(**changes):
    fields = {
        "uuid": "0123456789abcdef" * 2,
        "root": bytes(range(16)),
        "backend": "memory",
        "generation": 1,
        "token_bytes": 2,
        "base_fp": PRINTS.base,
        "tokenizer_fp": PRINTS.tokenizer,
    }
    return MemoryMeta(**fields | changes)


def new_store(meta, path="unused"):
    from pathlib import Path

    store = InMemoryStorage(Path(path))
    store.open("create", Header(block_bytes=32 * meta.token_bytes))
    return store


def fill(store, meta, n_turns=12):
    """Write turns of every kind: short, long, in parts, without text, without tokens; settings."""
    clock = iter(range(1_700_000_000_000_000, 1_800_000_000_000_000, 1_000_000))
    journal = Journal(store, root=meta.root, token_bytes=meta.token_bytes, clock=clock.__next__)
    random = np.random.default_rng(7)
    encoder = {"fp": "enc", "name": "mean", "slots": 1, "dtype": "f2", "aux": 0}
    journal.update_settings({"encoders": [encoder], "pins": [[0, 32]], "forks": [{"path": "/x"}]})
    for turn in range(n_turns):
        n = int(random.integers(1, 90))
        ids = random.integers(0, VOCAB_SIZE, 2 * n + 7).astype(np.int32)
        journal.append(
            ids,
            [
                record(n, f"question {turn}", ts_us=turn),
                record(3, f"first {turn}", role=1, trust=2),
                record(n + 4, f" then {turn}", role=1, trust=2, flags=FLAG_CONTINUES),
            ],
            key=bytes([turn + 1]) * 16,
        )
    journal.append(ids[:5], [record(5, role=3, trust=1)])
    journal.append(ids[:0], [record(0, "nothing", role=2, trust=4)])
    journal.update_settings({"pins": [[0, 64]], "receipts": [{"seq": 3}]}).wait()
    for lod, width in ((1, 32), (2, 1024)):
        n = journal.n_tokens // width
        if n:
            rows = random.standard_normal((n, WIDTH)).astype("<f2")
            journal.put_gists(
                GistBatch(
                    version=0,
                    lod=lod,
                    nodes=np.arange(n, dtype=np.uint64),
                    trust=np.full(n, 2, np.uint8),
                    rows=rows.view(np.uint8),
                )
            )
    journal.flush()
    journal.abandon()
    return store


def history(meta, *commits):
    """Return a store with these commits (lists of records), checked by nobody."""
    store = new_store(meta)
    position = Position(
        seq=0, chain=meta.root, n_tokens=0, n_messages=0, tail=np.empty(0, np.int32)
    )
    for records in commits:
        ids = np.zeros(sum(one.n_tokens for one in records), np.int32)
        pending = pending_commit(position, ids, records, 0, (1, bytes(16), 0), None, Outcome())
        if records[-1].role == 4:
            after = attrs.evolve(pending.after, setting=position.n_messages + len(records) - 1)
            position = attrs.evolve(position, setting=after.setting)
            pending = pending_commit(position, ids, records, 0, (1, bytes(16), 0), None, Outcome())
        store.commit(batch_of([pending], position, meta.token_bytes))
        position = pending.after
    return store


def redacted(store, meta, spans, messages):
    """Return a copy of a store in which spans and messages were forgotten."""
    copy = new_store(meta)
    gone = Redaction(tuple(spans), np.asarray(messages, np.int64))
    position = copy_commits(
        store, copy, root=meta.root, token_bytes=meta.token_bytes, redaction=gone
    )
    copy_gists(store, copy, n_tokens=position.n_tokens, redaction=gone)
    return copy


def content(store, *, upto=None):
    """Return everything a store holds, to compare."""
    state = store.state()
    seq = state.seq if upto is None else upto
    commits = store.read_commits(1, seq + 1)
    stop = int((commits["first_message"] + commits["n_messages"])[-1]) if seq else 0
    return {
        "chain": commits["chain"].tobytes(),
        "commits": commits.tobytes(),
        "blocks": store.read_blocks(np.arange(state.n_blocks)).tobytes(),
        "tail": state.tail,
        "messages": store.read_messages(0, stop).tobytes(),
        "bodies": store.read_bodies(np.arange(stop)),
        "gists": {
            (version, lod): (
                store.read_gists(version, lod, np.arange(n)).rows.tobytes(),
                store.read_gists(version, lod, np.arange(n)).trust.tobytes(),
            )
            for version, lod, n in state.gist_rows
        },
    }


def resealed(header, parts):
    """Return the bytes of a bundle with a right length and a right digest, whatever is in it."""
    raw = PREFIX.pack(b"MCBUNDLE", len(header)) + header + parts
    return raw + blake2b(raw, digest_size=DIGEST_BYTES).digest()


def opened_up(raw):
    """Return `(header, parts)` of a bundle's bytes."""
    length = PREFIX.unpack(raw[: PREFIX.size])[1]
    start = PREFIX.size + length
    return raw[PREFIX.size : start], raw[start:-DIGEST_BYTES]


def relinked(header, parts):
    """Return header and parts with a chain that holds, for whatever the parts say now."""
    head = msgspec.json.decode(header)
    cut = {}
    for part in head["parts"]:
        raw = parts[part["offset"] : part["offset"] + part["length"]]
        if part["kind"] == "bodies":
            lengths = np.frombuffer(raw[: 4 * part["rows"]], "<u4").astype(np.int64)
            ends = np.cumsum(np.concatenate([[4 * part["rows"]], lengths])).tolist()
            bodies = [raw[a:b] for a, b in pairwise(ends)]
            cut.setdefault("bodies", []).extend(bodies)
        else:
            cut.setdefault(part["kind"], raw)
    rows = np.frombuffer(cut["commits"], COMMIT).copy()
    ids = np.frombuffer(cut.get("blocks", b"") + cut.get("tail", b""), "<u2").astype(np.int32)
    ids[ids == 0xFFFF] = -1
    messages, chain = np.frombuffer(cut["messages"], MESSAGE), bytes.fromhex(head["root"])
    for row in rows:
        start, first = int(row["start"]), int(row["first_message"])
        last = first + int(row["n_messages"])
        covered = ids[start : start + int(row["n_tokens"])]
        packed, bodies = messages[first:last].tobytes(), cut["bodies"][first:last]
        chain = link(chain, row.tobytes()[:72], covered, packed, bodies[: len(packed) // 24])
        row["chain"] = np.void(chain)
    head["chain"] = chain.hex()
    commits = rows.tobytes()
    return msgspec.json.encode(head), commits + parts[len(commits) :]


ODD = (
    *(0, 1, -1, 2, 31, 32, 255, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**48, 2**53),
    *(2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 88, 0.5, 1.0, None, True, "", "x", "0" * 32, []),
    *({}, "commits", "gist_rows", "bodies", "tail"),
)


class Vandal:
    """Makes bad bundles of a good one.

    Args:
        raw: bytes of the good one.
        seed: of the choices.
    """

    def __init__(self, raw, seed):
        self.raw = raw
        self.header, self.parts = opened_up(raw)
        self.random = random.Random(seed)

    def case(self):
        """Return the bytes of one bad bundle."""
        makers = {
            lambda: self.damaged(self.raw): 8,
            lambda: self.raw[: self.random.randrange(len(self.raw))]: 4,
            lambda: resealed(*relinked(self.header, self.damaged(self.parts))): 40,
            lambda: resealed(self.header, self.damaged(self.parts)): 12,
            lambda: resealed(self.edited(), self.parts): 28,
            lambda: resealed(self.damaged(self.header), self.parts): 4,
            lambda: resealed(self.edited(), self.parts + bytes(self.random.randrange(3))): 4,
        }
        return self.random.choices([*makers], weights=makers.values())[0]()

    def damaged(self, raw):
        """Return bytes with flips, runs of zeros and ones, and pieces copied elsewhere."""
        changed = bytearray(raw)
        for _ in range(self.random.choice([1, 1, 1, 2, 8])):
            at, width = (
                self.random.randrange(len(changed)),
                self.random.choice([1, 2, 4, 8, 24, 88]),
            )
            width = min(width, len(changed) - at)
            kind = self.random.randrange(5)
            if kind == 0:
                changed[at] ^= 1 << self.random.randrange(8)
            elif kind == 1:
                changed[at : at + width] = bytes(width)
            elif kind == 2:
                changed[at : at + width] = b"\xff" * width
            elif kind == 3:
                other = self.random.randrange(len(changed) - width)
                changed[at : at + width] = changed[other : other + width]
            else:
                changed[at] = self.random.randrange(256)
        return bytes(changed)

    def edited(self):
        """Return a header with numbers, keys and parts that it should not have."""
        said = msgspec.json.decode(self.header)
        for _ in range(self.random.choice([1, 1, 2, 3])):
            parts = said["parts"]
            if self.random.random() < 0.2:
                at = self.random.randrange(len(parts))
                parts[at:at] = [parts[0] | {}, self.random.choice(parts) | {}, {}][: at % 3]
                continue
            place = said if self.random.random() < 0.4 else self.random.choice(parts)
            self.edit(place, {"parts"} if place is said else set())
        return msgspec.json.encode(said)

    def edit(self, place, spared):
        """Change one value of a map, or take it away."""
        keys = sorted(set(place) - spared)
        if not keys:
            return
        key, kind = self.random.choice(keys), self.random.randrange(7)
        if kind < 4:
            place[key] = self.random.choice(ODD)
        elif kind < 6 and isinstance(place[key], int):
            place[key] += self.random.choice([-88, -1, 1, 4, 32, 88])
        else:
            del place[key]


class Kit:
    """What the tests of this folder share; a fixture, because test files import no neighbour."""

    prints = PRINTS
    vocab_size = VOCAB_SIZE
    width = WIDTH
    storage = FileStorage
    nothing = NOTHING
    forgotten = FLAG_FORGOTTEN
    record = staticmethod(record)
    meta = staticmethod(meta_of)
    store = staticmethod(new_store)
    fill = staticmethod(fill)
    history = staticmethod(history)
    redacted = staticmethod(redacted)
    content = staticmethod(content)
    resealed = staticmethod(resealed)
    opened_up = staticmethod(opened_up)
    relinked = staticmethod(relinked)
    vandal = Vandal

    @classmethod
    def target(cls, **changes):
        """Return the arguments of `load_memory` for a memory on disk."""
        return {
            "backend": "file",
            "factory": FileStorage,
            "fingerprints": PRINTS,
            "vocab_size": VOCAB_SIZE,
            "width": WIDTH,
            "factory_of": lambda _name: FileStorage,
        } | changes

    @classmethod
    def reopened(cls, path, meta):
        """Return the store of a memory that was made with `target`, opened for reading."""
        store = FileStorage(path / "data-000001")
        store.open("read", Header(block_bytes=32 * meta.token_bytes))
        return store


@pytest.fixture
def kit():
    return Kit


@pytest.fixture
def in_child():
    """Run Python in another process and return what it printed."""

    def run(code, *arguments):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert 0 == done.returncode, done.stderr
        return done.stdout.strip()

    return run
