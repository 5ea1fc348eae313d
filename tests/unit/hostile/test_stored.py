"""Rows 13 to 15 and 26: what lies in the files. It is checked, never believed, never executed."""

import contextlib
import io
import json
import pickle
import shutil

import attrs
import msgspec
import numpy as np
import pytest

from megacontext_sdk import MemorySession, errors
from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.memory.directory import manifest
from megacontext_sdk.memory.journal import MessageRecord

TEXT = "The harbour master of Aran keeps a red boat. " * 12


@pytest.fixture
def kept(durable, open_session, tmp_path):
    with open_session(durable) as session:
        session.append(TEXT)
        session.append("And a grey cat.")
    return tmp_path / "alice.mc"


# --- row 13: MEMORY and manifests -------------------------------------------------------------


def signed(body):
    """Return MEMORY with a digest that fits: only what it says is hostile."""
    return body + manifest._MARK + manifest._digest(body) + b'"}\n'


def changed(**fields):
    def change(raw):
        document = json.loads(raw)
        del document["digest"]
        return signed(json.dumps(document | fields).encode()[:-1])

    return change


def duplicated(raw):
    body = raw[: -manifest._SUFFIX_BYTES]
    return signed(body.replace(b'"generation":1', b'"generation":1,"generation":2'))


CORRUPT = {
    "empty": lambda raw: b"",
    "depth 100,000": lambda raw: signed(b'{"format":[1,0],"features":' + b"[" * 30_000),
    "a million integers": lambda raw: signed(b'{"format":[' + b"1," * 10**6 + b"1]"),
    "not a number": lambda raw: signed(raw[: -manifest._SUFFIX_BYTES].replace(b":1,", b":NaN,", 1)),
    "no digest": lambda raw: raw[: -manifest._SUFFIX_BYTES] + b"}\n",
    "another digest": lambda raw: raw[:-4] + (b"1" if raw[-4:-3] == b"0" else b"0") + raw[-3:],
    "generation ../x": changed(generation="../x"),
    "generation 0": changed(generation=0),
    "generation -1": changed(generation=-1),
    "generation 10**9": changed(generation=10**9),
    "uuid ../x": changed(uuid="../../../../x"),
    "root too short": changed(root="AAAA"),
    "token_bytes 3": changed(token_bytes=3),
    "a list": lambda raw: signed(b"[1,2"),
    "a pickle": lambda raw: pickle.dumps({"format": [1, 0]}),
    "yaml": lambda raw: b"!!python/object/apply:os.system ['true']\n",
    "nul bytes": lambda raw: bytes(len(raw)),
}
OTHER_FORMAT = {
    "format 2.0": changed(format=[2, 0]),
    "format 0.9": changed(format=[0, 9]),
    "an unknown feature": changed(features=["time-travel"]),
    "blocks of 64": changed(block_size=64),
}


@pytest.mark.parametrize("what", CORRUPT)
def test_row13_a_hostile_memory_file_is_corrupt(durable, open_session, unchanged, kept, what):
    memory = kept / "MEMORY"
    memory.write_bytes(CORRUPT[what](memory.read_bytes()))
    for read_only in (True, False):
        with unchanged(errors.CorruptError) as caught:
            open_session(durable, read_only=read_only)
        assert "MEMORY" == caught.value.where


@pytest.mark.parametrize("what", OTHER_FORMAT)
def test_row13_another_format_is_named(durable, open_session, unchanged, kept, what):
    memory = kept / "MEMORY"
    memory.write_bytes(OTHER_FORMAT[what](memory.read_bytes()))
    with unchanged(errors.FormatVersionError) as caught:
        open_session(durable)
    assert caught.value.found
    assert caught.value.supported


def test_row13_of_a_key_given_twice_the_file_that_was_checked_is_used(
    durable, open_session, kept, snapshot
):
    """Either reading is refused: generation 2 is not there, and no other is opened for it."""
    memory = kept / "MEMORY"
    memory.write_bytes(duplicated(memory.read_bytes()))
    before = snapshot(kept)
    with pytest.raises(errors.StorageError):
        open_session(durable)
    assert before == snapshot(kept)


def test_row13_a_memory_file_of_a_gigabyte_is_not_read(durable, open_session, kept):
    with (kept / "MEMORY").open("r+b") as file:
        file.truncate(2**30)
    with pytest.raises(errors.CorruptError, match="larger than"):
        open_session(durable)


HOSTILE_JSON = [b"", b"{}", b"[" * 100_000, b'{"segments":[' + b"1," * 10**6, b"NaN", b"\x80\x04."]


@pytest.mark.parametrize("raw", HOSTILE_JSON, ids=range(len(HOSTILE_JSON)))
def test_row13_a_hostile_manifest_of_a_backend_is_refused(
    durable, open_session, unchanged, kept, raw
):
    files = sorted((kept / "data-000001").glob("*.json"))
    if not files:
        pytest.skip(f"{durable} keeps no manifest")
    for file in files:
        file.write_bytes(raw)
    with unchanged(errors.StorageError):
        open_session(durable)


# --- row 14: bodies ---------------------------------------------------------------------------

BODIES = {
    "claims 2**32 items": b"\x81\xa8metadata\x81\xa1a\xdd\xff\xff\xff\xff",
    "claims 2**32 bytes": b"\x81\xa4text\xdb\xff\xff\xff\xff",
    "100,000 deep": b"\x81\xa8metadata\x81\xa1a" + b"\x91" * 100_000 + b"\xc0",
    "nine deep": b"\x81\xa8metadata\x81\xa1a" + b"\x91" * 9 + b"\xc0",
    "an unknown tag": b"\x81\xa2lc\x01",
    "an extension type": b"\x81\xa8metadata\x81\xa1a\xd4\x01\x00",
    "a pickle": pickle.dumps("text"),
    "no text": b"\x81\xa4text\xa2\xff\xfe",
}


@pytest.mark.parametrize("what", BODIES)
def test_row14_a_hostile_body_is_corrupt_and_costs_only_itself(backend, open_session, what):
    session = open_session(backend)
    session.append("Before it.")
    ids = session._parts.state.tokenizer.encode("hostile")
    record = MessageRecord(role=0, trust=3, flags=0, ts_us=1, n_tokens=len(ids), body=BODIES[what])
    session._parts.tree.append(np.asarray(ids, np.int32), [record], op=1, key=None, ts_us=1).wait()
    number = session._parts.journal.n_messages - 1
    with pytest.raises(errors.CorruptError):
        session.messages(number)
    assert "Before it." in session.messages(0, number)[-1].text
    assert "hostile" in session[:]


REVIVED = {
    "lc": 1,
    "type": "constructor",
    "id": ["langchain", "schema", "messages", "HumanMessage"],
    "kwargs": {"content": "x"},
    "__class__": "os.system",
    "py/object": "os.system",
    "!!python/object": "x",
    "$ref": "#/",
    "@type": "java.lang.Runtime",
}


def test_row14_a_map_of_the_user_stays_a_map(session, echo):
    session.append("hello", metadata={"state": REVIVED} | REVIVED)
    (message,) = session.messages(-1)
    assert {"state": REVIVED} | REVIVED == message.metadata
    assert dict is type(message.metadata["state"])


# --- row 15: gist rows ------------------------------------------------------------------------


class Broken(MeanGistEncoder):
    """Makes what a test says."""

    name = "broken"

    def __init__(self, change):
        super().__init__()
        self.change = change

    def fingerprint(self, info):
        return "b" * 64

    def encode_blocks(self, blocks, services):
        made = super().encode_blocks(blocks, services)
        return attrs.evolve(made, rows=self.change(made.rows))


def _set(value):
    def change(rows):
        rows = rows.copy()
        rows[0, 0, 0] = value
        return rows

    return change


BAD_ROWS = {
    "NaN": _set(np.nan),
    "infinite": _set(np.inf),
    "beyond 16 bits": _set(1e30),
    "too narrow": lambda rows: rows[..., :-1],
    "too wide": lambda rows: np.concatenate([rows, rows], axis=2),
    "two slots": lambda rows: np.concatenate([rows, rows], axis=1),
    "two dimensions": lambda rows: rows[:, 0],
    "too few": lambda rows: rows[:-1],
    "too many": lambda rows: np.concatenate([rows, rows]),
    "none": lambda rows: None,
    "a list": lambda rows: rows.tolist(),
    "objects": lambda rows: rows.astype(object),
    "text": lambda rows: rows.astype("U8"),
}
GOOD_ROWS = {
    "byte-swapped": lambda rows: rows.astype(">f4"),
    "non-contiguous": lambda rows: np.repeat(rows, 2, axis=2)[..., ::2],
    "Fortran order": lambda rows: np.asfortranarray(rows),
    "float64": lambda rows: rows.astype(np.float64),
    "all zero": lambda rows: rows * 0,
}


def served(session):
    tree = session._parts.tree
    return tree.gists(1, np.arange(tree.n_blocks))


@pytest.mark.parametrize("what", BAD_ROWS)
def test_row15_bad_rows_of_an_encoder_never_replace_good_ones(backend, open_session, what):
    session = open_session(backend)
    session.append(TEXT)
    before = served(session)
    with contextlib.suppress(errors.ModelError):
        session.rebuild(gist=Broken(BAD_ROWS[what]))
    assert np.isfinite(served(session)).all()
    assert before.shape == served(session).shape
    session.append("Still taking in. " * 10)
    assert "red boat" in session.search("harbour master")[0].text
    assert np.isfinite(served(session)).all()


@pytest.mark.parametrize("what", BAD_ROWS)
def test_row15_bad_rows_cost_no_token_of_an_append(backend, open_session, what):
    session = open_session(backend, gist=Broken(BAD_ROWS[what]))
    with contextlib.suppress(errors.ModelError):
        session.append(TEXT)
    assert TEXT == session.messages()[-1].text
    assert np.isfinite(served(session)).all()


@pytest.mark.parametrize("what", GOOD_ROWS)
def test_row15_numbers_are_numbers_however_they_lie(backend, open_session, what):
    session = open_session(backend, gist=Broken(GOOD_ROWS[what]))
    session.append(TEXT)
    plain = open_session(
        "memory", gist=Broken(lambda rows: rows if what != "all zero" else rows * 0)
    )
    plain.append(TEXT)
    assert served(plain).tobytes() == served(session).tobytes()


# --- row 26: serialised state -----------------------------------------------------------------


class Payload:
    """Leaves a mark if anything ever loads it."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def offers(mark):
    objects = io.BytesIO()
    np.save(objects, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    return {
        "pickle": pickle.dumps(Payload(mark)),
        "pickle 0": pickle.dumps(Payload(mark), protocol=0),
        "npy": objects.getvalue(),
        "yaml": f"!!python/object/apply:builtins.open ['{mark}', 'w']\n".encode(),
        "toml": f"w_max = !!python/object/apply:builtins.open ['{mark}', 'w']\n".encode(),
        "msgpack": msgspec.msgpack.encode(msgspec.msgpack.Ext(1, pickle.dumps(Payload(mark)))),
    }


KINDS = sorted(offers("mark"))


@pytest.mark.parametrize("kind", KINDS)
def test_row26_nothing_offered_as_a_file_is_executed(echo, tmp_path, kind):
    mark, offer = tmp_path / "mark", tmp_path / f"offer.{kind}"
    offer.write_bytes(offers(mark)[kind])
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "pytorch_model.bin", "tokenizer.json"):
        (folder / name).write_bytes(offers(mark)[kind])
    for call in (
        lambda: MemorySession.open(None, model=echo, storage="memory", config=offer),
        lambda: MemorySession.open(None, model=f"hf:{folder}", storage="memory"),
        lambda: MemorySession.load(offer, into=None, model=echo, storage="memory"),
        lambda: MemorySession.load(folder, into=None, model=echo, storage="memory"),
        lambda: MemorySession.open(offer, model=echo),
        lambda: MemorySession.recover(offer),
    ):
        with pytest.raises(errors.MegaContextError):
            call()
    assert not mark.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_row26_nothing_in_a_cache_is_executed_and_the_cache_is_made_again(
    durable, open_session, kept, tmp_path, kind
):
    mark = tmp_path / "mark"
    for name in ("cache/layout.msgpack", "cache/lexical.sqlite", "access.bin", "LOCK"):
        (kept / name).write_bytes(offers(mark)[kind])
    with open_session(durable) as session:
        assert "red boat" in session.search("harbour master")[0].text
        session.generate("And now?", max_new_tokens=2)
    assert not mark.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_row26_nothing_in_the_data_is_executed(durable, open_session, unchanged, kept, kind):
    mark = kept.parent / "mark"
    for file in sorted((kept / "data-000001").rglob("*")):
        copy = kept.parent / "copy.mc"
        shutil.copytree(kept, copy)
        (copy / "data-000001" / file.name).write_bytes(offers(mark)[kind])
        with unchanged(errors.StorageError):
            open_session(durable, copy, read_only=True)
        shutil.rmtree(copy)
    assert not mark.exists()
