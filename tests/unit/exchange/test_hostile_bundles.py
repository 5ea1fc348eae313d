"""Bundles from somebody who means harm: rows 11 and 12 of the table of bad input, and more."""

import msgspec
import numpy as np
import pytest

from megacontext_sdk.contracts.storage import COMMIT, MESSAGE
from megacontext_sdk.errors import BundleError, ConfigError
from megacontext_sdk.memory.exchange.bundle import write_bundle
from megacontext_sdk.memory.exchange.loading import load_memory

MIB = 2**20


@pytest.fixture
def author(tmp_path, kit):
    """Write bundles with a right digest and, if asked, a right chain, whatever they say."""
    meta = kit.meta()
    write_bundle(kit.fill(kit.store(meta), meta, 4), meta, tmp_path / "good")
    header, parts = kit.opened_up((tmp_path / "good").read_bytes())
    (tmp_path / "good").unlink()

    class Author:
        said = msgspec.json.decode(header)
        raw_parts = parts

        def part(self, kind):
            return next(part for part in self.said["parts"] if part["kind"] == kind)

        def write(self, *, header=None, parts=None, relink=False):
            raw = msgspec.json.encode(self.said) if header is None else header
            content = bytes(self.raw_parts if parts is None else parts)
            if relink:
                raw, content = kit.relinked(raw, content)
            (tmp_path / "bad").write_bytes(kit.resealed(raw, content))

        def changed(self, kind, row, field, value):
            """Return the parts with one field of one row changed."""
            dtype = {"commits": COMMIT, "messages": MESSAGE}[kind]
            part, raw = self.part(kind), bytearray(self.raw_parts)
            rows = np.frombuffer(raw, dtype, part["rows"], part["offset"])
            rows[field][row] = value
            return raw

        def refused(self):
            with pytest.raises(BundleError) as caught:
                load_memory(tmp_path / "bad", into=tmp_path / "a.mc", **kit.target())
            assert ["bad"] == [entry.name for entry in tmp_path.iterdir()]
            return caught.value

    return Author()


# --- row 11: the header --------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2**32 - 1, 2**31, 16 * MIB + 1, 100_000])
def test_row11_a_header_longer_than_its_limit_or_the_file(tmp_path, author, kit, length):
    author.write()
    raw = bytearray((tmp_path / "bad").read_bytes())
    raw[8:12] = length.to_bytes(4, "little")
    (tmp_path / "bad").write_bytes(raw)
    error = author.refused()
    assert ("header", 8) == (error.part, error.offset)
    assert error.limit < length


@pytest.mark.parametrize("field", ["offset", "length", "rows", "stride", "first", "version", "lod"])
@pytest.mark.parametrize("value", [2**63, 2**64, 2**62, -1, 1.5, None, "1", True])
def test_row11_numbers_that_no_part_can_have(author, field, value):
    author.part("messages")[field] = value
    author.write()
    author.refused()


@pytest.mark.parametrize("field", ["n_tokens", "n_messages", "seq", "token_bytes", "block_size"])
@pytest.mark.parametrize("value", [2**63, 2**48 + 1, -1, 0, 3, 1.0, None, []])
def test_row11_numbers_that_no_memory_can_have(author, field, value):
    author.said[field] = value
    author.write()
    assert author.refused().offset is not None


def test_row11_more_parts_than_allowed(author):
    part = author.part("tail")
    author.said["parts"] += [part] * 65_537
    author.write()
    error = author.refused()
    assert ("header", 65_536) == (error.part, error.limit)


@pytest.mark.parametrize("key", ["seq", "format", "parts", "uuid"])
def test_row11_a_key_given_twice(author, key):
    raw = msgspec.json.encode(author.said)
    twice = raw[:-1] + b',"' + key.encode() + b'":' + msgspec.json.encode(author.said[key]) + b"}"
    author.write(header=twice)
    assert "one spelling" in str(author.refused())


def test_row11_a_key_of_a_part_given_twice(author):
    raw = msgspec.json.encode(author.said)
    author.write(header=raw.replace(b'"kind":"tail"', b'"kind":"tail","kind":"tail"'))
    author.refused()


@pytest.mark.parametrize("change", [b" ", b"\n", b"\t"])
def test_row11_another_spelling(author, change):
    author.write(header=msgspec.json.encode(author.said) + change)
    author.refused()


@pytest.mark.parametrize("kind", ["blocks", "tail", "messages", "bodies", "gist_rows"])
def test_row11_an_overlap(author, kind):
    author.part(kind)["offset"] -= 1
    author.write()
    error = author.refused()
    assert "overlaps" in str(error)
    assert error.part.startswith(kind)


@pytest.mark.parametrize("kind", ["commits", "blocks", "messages", "gist_trust"])
def test_row11_a_gap(author, kind):
    author.part(kind)["offset"] += 8
    author.write(parts=author.raw_parts + bytes(8))
    error = author.refused()
    assert "gap" in str(error)
    assert error.part.startswith(kind)


def test_row11_bytes_that_belong_to_no_part(author):
    author.write(parts=author.raw_parts + b"smuggled")
    assert "belong to no part" in str(author.refused())


@pytest.mark.parametrize("changes", [{"rows": 0, "length": 0}, {"rows": 0}, {"length": 0}])
def test_row11_an_empty_part_that_lies_on_another(author, changes):
    parts = author.said["parts"]
    parts.insert(1, parts[1] | changes)
    author.write()
    assert "empty" in str(author.refused())


@pytest.mark.parametrize("kind", ["commits", "blocks", "tail", "messages", "bodies", "gist_trust"])
def test_row11_a_part_left_out(author, kind):
    author.said["parts"] = [part for part in author.said["parts"] if part["kind"] != kind]
    at = 0
    raw = b""
    for part in author.said["parts"]:
        raw += author.raw_parts[part["offset"] : part["offset"] + part["length"]]
        part["offset"], at = at, at + part["length"]
    author.write(parts=raw)
    author.refused()


def test_row11_parts_in_another_order(author):
    author.said["parts"].reverse()
    at = 0
    for part in author.said["parts"]:
        part["offset"], at = at, at + part["length"]
    author.write()
    author.refused()


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"format":[1,0],"x":' + b"[" * 100_000,
        b'{"format":' + b"[" * 100_000,
        b'{"format":[1,0]}',
        b'{"format":[NaN,0]}',
        b'{"format":[1,-7]}',
        b'{"format":[0,0]}',
        b'{"format":"1.0"}',
        b"\xff\xfe{}",
        b'{"format":[1,0],"uuid":"\\ud800"}',
        b"9" * 5_000,
    ],
)
def test_row11_headers_that_are_none(author, header):
    author.write(header=header)
    assert "header" == author.refused().part


@pytest.mark.parametrize("field", ["uuid", "root", "chain"])
@pytest.mark.parametrize("value", ["", "../../etc", "0" * 31, "0" * 33, "G" * 32, "0" * 31 + "\n"])
def test_row11_identities_that_are_none(author, field, value):
    author.said[field] = value
    author.write()
    author.refused()


@pytest.mark.parametrize("value", ["", "a b", "../x", "x" * 300, "\0", "{}"])
def test_row11_fingerprints_that_are_none(author, value):
    author.said["base_fp"] = value
    author.write()
    author.refused()


@pytest.mark.parametrize("cut", [0, 1, 11, 12, 43, 44, 500, -1, -32, -33])
def test_row11_a_file_cut_short(tmp_path, author, cut):
    author.write()
    raw = (tmp_path / "bad").read_bytes()
    (tmp_path / "bad").write_bytes(raw[:cut])
    author.refused()


def test_row11_any_byte_changed_on_the_way(tmp_path, author):
    author.write()
    raw = (tmp_path / "bad").read_bytes()
    for at in range(0, len(raw), 97):
        changed = bytearray(raw)
        changed[at] ^= 0x10
        (tmp_path / "bad").write_bytes(changed)
        author.refused()


# --- row 12: right checksums, wrong content ------------------------------------------------------


def test_row12_a_wrong_chain_in_one_commit(author):
    author.write(parts=author.changed("commits", 2, "chain", np.void(bytes(16))))
    error = author.refused()
    assert "chain does not hold at commit 3" in str(error)
    assert 2 == error.have_seq


def test_row12_a_head_that_is_not_the_last_link(author):
    author.said["chain"] = "0" * 32
    author.write()
    assert "ends elsewhere" in str(author.refused())


def test_row12_another_root(author):
    author.said["root"] = "0" * 32
    author.write()
    assert "commit 1" in str(author.refused())


@pytest.mark.parametrize("relink", [False, True])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seq", 9),
        ("seq", 0),
        ("seq", 2**64 - 1),
        ("start", 1),
        ("start", 2**64 - 1),
        ("first_message", 0),
        ("first_message", 2**63),
        ("n_tokens", 0),
        ("n_tokens", 2**32 - 1),
        ("n_messages", 0),
        ("n_messages", 2**32 - 1),
        ("ts_us", 2**63 - 1),
        ("ts_us", -(2**63)),
        ("setting", 1),
        ("setting", 2**64 - 1),
    ],
)
def test_row12_commits_that_do_not_follow_each_other(author, field, value, relink):
    author.write(parts=author.changed("commits", 3, field, value), relink=relink)
    error = author.refused()
    assert "commits" == error.part
    assert error.offset is not None


def test_row12_two_commits_exchanged(author):
    raw = bytearray(author.raw_parts)
    raw[0:88], raw[88:176] = raw[88:176], raw[0:88]
    author.write(parts=raw, relink=True)
    author.refused()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start", 0),
        ("start", 2**64 - 1),
        ("n_tokens", 1),
        ("n_tokens", 2**32 - 1),
        ("role", 5),
        ("role", 255),
        ("trust", 5),
        ("trust", 255),
        ("flags", 4),
        ("flags", 2**16 - 1),
        ("ts_us", 2**63 - 1),
        ("ts_us", -(2**63)),
    ],
)
def test_row12_messages_that_do_not_tile_or_say_what_none_can(author, field, value):
    author.write(parts=author.changed("messages", 3, field, value), relink=True)
    author.refused()


def test_row12_a_settings_map_that_holds_tokens(author):
    author.write(parts=author.changed("messages", 1, "role", 4), relink=True)
    author.refused()


def test_row12_a_token_outside_the_vocabulary(author, kit):
    raw = bytearray(author.raw_parts)
    at = author.part("blocks")["offset"] + 2 * 40
    raw[at : at + 2] = kit.vocab_size.to_bytes(2, "little")
    author.write(parts=raw, relink=True)
    error = author.refused()
    assert ("blocks", kit.vocab_size) == (error.part, error.limit)


def test_row12_a_token_outside_the_vocabulary_in_the_tail(author):
    raw = bytearray(author.raw_parts)
    at = author.part("tail")["offset"]
    raw[at : at + 2] = b"\xfe\xff"
    author.write(parts=raw, relink=True)
    assert "tail" == author.refused().part


@pytest.mark.parametrize("length", [0, 2**31, 2**32 - 1, 17 * MIB])
def test_row12_lengths_of_bodies_that_do_not_add_up(author, length):
    raw = bytearray(author.raw_parts)
    at = author.part("bodies")["offset"]
    raw[at : at + 4] = length.to_bytes(4, "little")
    author.write(parts=raw)
    assert author.refused().part.startswith("bodies")


def test_row12_ids_of_another_size_than_the_vocabulary_needs(tmp_path, kit):
    meta = kit.meta(token_bytes=4)
    write_bundle(kit.fill(kit.store(meta), meta, 2), meta, tmp_path / "bad")
    with pytest.raises(ConfigError, match="4 bytes"):
        load_memory(tmp_path / "bad", into=tmp_path / "a.mc", **kit.target())
    assert ["bad"] == [entry.name for entry in tmp_path.iterdir()]


# --- row 14: bodies ------------------------------------------------------------------------------

BOMBS = {
    "a list that claims 2**32 items": b"\x81\xa8metadata\x81\xa1a\xdd\xff\xff\xff\xff",
    "text that claims 2**32 bytes": b"\x81\xa4text\xdb\xff\xff\xff\xff",
    "deep lists": b"\x81\xa8metadata\x81\xa1a" + b"\x91" * 100_000 + b"\xc0",
    "lists nine deep": b"\x81\xa8metadata\x81\xa1a" + b"\x91" * 9 + b"\xc0",
    "a million small lists": b"\x81\xa8metadata\x81\xa1a\xdd\0\x0f\x42\x40" + b"\x90" * 1_000_000,
    "a million spans": b"\x81\xa6recall\xdd\0\x0f\x42\x40" + b"\x92\x01\x02" * 1_000_000,
    "an unknown key": b"\x81\xa2lc\x01",
    "a number for text": b"\x81\xa4text\x01",
    "bytes that are no text": b"\x81\xa4text\xa2\xff\xfe",
    "a pickle": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x07os.path\x94.",
    "not a number": b"\x81\xa8metadata\x81\xa1a\xcb\x7f\xf8\0\0\0\0\0\0",
    "an extension type": b"\x81\xa8metadata\x81\xa1a\xd4\x01\x00",
    "bytes as metadata": b"\x81\xa8metadata\x81\xa1a\xc4\x01x",
    "a list as metadata": b"\x81\xa8metadata\x90",
    "numbers as keys": b"\x81\xa8metadata\x81\x01\x01",
    "two bodies": b"\x80\x80",
}


FINE_IN_SETTINGS = {"an unknown key", "a number for text", "a list as metadata"}
FINE_IN_SETTINGS |= {"a million small lists", "bytes as metadata"}  # a map of anything, of 1 MiB


@pytest.mark.parametrize(
    ("role", "what"),
    [(0, what) for what in BOMBS] + [(4, what) for what in sorted(set(BOMBS) - FINE_IN_SETTINGS)],
)
def test_row14_bodies_that_would_burst(tmp_path, kit, role, what):
    meta = kit.meta()
    store = kit.history(meta, [kit.record(0, role=role, body=BOMBS[what], trust=4)])
    write_bundle(store, meta, tmp_path / "bad")
    with pytest.raises(BundleError) as caught:
        load_memory(tmp_path / "bad", into=tmp_path / "a.mc", **kit.target())
    assert "bodies from 0" == caught.value.part
    assert ["bad"] == [entry.name for entry in tmp_path.iterdir()]


def test_row14_a_commit_that_holds_more_than_one_can(tmp_path, kit):
    meta = kit.meta()
    text = kit.record(0, "x" * (9 * MIB))
    write_bundle(kit.history(meta, [text, text]), meta, tmp_path / "bad")
    with pytest.raises(BundleError, match="larger than any can be") as caught:
        load_memory(tmp_path / "bad", into=tmp_path / "a.mc", **kit.target())
    assert ("commits", 16 * MIB + 48) == (caught.value.part, caught.value.limit)


def test_an_error_never_quotes_what_it_stumbled_over(tmp_path, kit):
    meta = kit.meta()
    secret = b"\x81\xadthe gate code\x01"
    write_bundle(kit.history(meta, [kit.record(0, body=secret)]), meta, tmp_path / "bad")
    with pytest.raises(BundleError) as caught:
        load_memory(tmp_path / "bad", into=tmp_path / "a.mc", **kit.target())
    assert "gate" not in str(caught.value)
    assert caught.value.__cause__ is None
