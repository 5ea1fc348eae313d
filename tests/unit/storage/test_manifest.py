"""MEMORY: golden bytes, its digest, formats we do not know."""

import msgspec
import pytest

from megacontext_sdk.errors import ConfigError, CorruptError, FormatVersionError
from megacontext_sdk.memory.directory.manifest import (
    MemoryMeta,
    _digest,
    decode_meta,
    encode_meta,
    read_meta,
    replace_meta,
)

META = MemoryMeta(
    uuid="0123456789abcdef0123456789abcdef",
    root=bytes(range(16)),
    backend="duckdb",
    generation=1,
    token_bytes=2,
    base_fp="aa",
    tokenizer_fp="bb",
)
GOLDEN = (
    b'{"format":[1,0],"features":[],"uuid":"0123456789abcdef0123456789abcdef",'
    b'"root":"AAECAwQFBgcICQoLDA0ODw==","backend":"duckdb","generation":1,"block_size":32,'
    b'"token_bytes":2,"base_fp":"aa","tokenizer_fp":"bb","parent":null,'
    b'"digest":"0cbadffbaa86b3f5bf95c0588c6dca41"}\n'
)


def signed(body: bytes) -> bytes:
    """Sign other content the way we would have."""
    return body + b',"digest":"' + _digest(body) + b'"}\n'


def changed(**fields) -> bytes:
    plain = msgspec.json.decode(msgspec.json.encode(META))
    return signed(msgspec.json.encode({**plain, **fields})[:-1])


def test_row08_memory_has_its_golden_bytes():
    data = encode_meta(META)
    assert GOLDEN == data
    assert META == decode_meta(data, "alice.mc")


def test_row08_every_changed_byte_is_noticed():
    data = encode_meta(META)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 4
        with pytest.raises(CorruptError):
            decode_meta(bytes(damaged), "alice.mc")


@pytest.mark.parametrize("cut", [0, 1, 30, 100, -1, -2, -40])
def test_row08_a_cut_file_is_corrupt(cut):
    with pytest.raises(CorruptError):
        decode_meta(encode_meta(META)[:cut], "alice.mc")


@pytest.mark.parametrize(
    "fields",
    [{"format": [2, 0]}, {"format": [0, 9]}, {"features": ["sharded"]}, {"block_size": 64}],
)
def test_row08_other_formats_are_refused_with_what_was_found(fields):
    with pytest.raises(FormatVersionError) as caught:
        decode_meta(changed(**fields), "alice.mc")
    assert "alice.mc" in str(caught.value)
    assert caught.value.found


def test_a_newer_minor_format_with_unknown_fields_opens():
    meta = decode_meta(changed(format=[1, 7], colour="green"), "alice.mc")
    assert (1, 7) == meta.format


@pytest.mark.parametrize(
    "fields",
    [
        {"generation": "../x"},
        {"generation": -1},
        {"generation": 0},
        {"generation": 10**9},
        {"token_bytes": 3},
        {"uuid": "x"},
        {"root": "AAAA"},
        {"backend": None},
        {"parent": 7},
    ],
)
def test_values_that_cannot_be_are_corrupt(fields):
    with pytest.raises(CorruptError):
        decode_meta(changed(**fields), "alice.mc")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"format":' + b"[" * 50_000,
        b'{"format":[1,NaN],"features":[]',
        b"\xff\xfe",
        b"",
        b"\x80\x04pickle",
    ],
)
def test_hostile_json_with_a_valid_digest_is_corrupt(body):
    with pytest.raises(CorruptError):
        decode_meta(signed(body), "alice.mc")


def test_file_is_replaced_as_a_whole_and_private(tmp_path):
    assert read_meta(tmp_path) is None
    (tmp_path / "MEMORY.part").write_text("left over by a crash")
    replace_meta(tmp_path, META)
    assert META == read_meta(tmp_path)
    assert ["MEMORY"] == [entry.name for entry in tmp_path.iterdir()]
    assert 0o600 == (tmp_path / "MEMORY").stat().st_mode & 0o777


def test_planted_files_are_refused(tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(encode_meta(META))
    folder = tmp_path / "alice.mc"
    folder.mkdir()
    (folder / "MEMORY.part").symlink_to(outside)
    replace_meta(folder, META)
    assert not (folder / "MEMORY").is_symlink()
    assert encode_meta(META) == outside.read_bytes()
    (folder / "MEMORY").unlink()
    (folder / "MEMORY").mkdir()
    with pytest.raises(ConfigError):
        read_meta(folder)
    (folder / "MEMORY").rmdir()
    (folder / "MEMORY").write_bytes(b"x" * 70_000)
    with pytest.raises(CorruptError, match="larger"):
        read_meta(folder)
