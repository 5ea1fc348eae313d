"""What the files look like: golden bytes, modes, names, and that content lies in them as it is."""

import json
import os
import pickle
import stat
from hashlib import blake2b

import attrs
import numpy as np
import pytest

from megacontext_filesystem import manifest as manifests
from megacontext_filesystem import opening
from megacontext_sdk.contracts.storage import Header
from megacontext_sdk.errors import ConfigError, CorruptError, FormatVersionError, InvariantError


@pytest.fixture
def golden(opened, oracle, monkeypatch, eager):
    """Return a store of known bytes: one sealed commit with gists, one in the log."""
    monkeypatch.setattr(opening.secrets, "token_hex", lambda n_bytes: "5a" * n_bytes)
    store = opened("create")
    store.commit(oracle.batch(70, n_messages=2))
    store.put_gists(oracle.gists(0, 2))
    store.flush()
    store.commit(oracle.batch(5))
    store.put_gists(oracle.gists(0, 1, version=3, lod=2))
    store.close()
    return store


def test_the_bytes_of_every_file_are_those_of_format_1(golden, snapshot):
    digests = {
        name: blake2b(data, digest_size=8).hexdigest()
        for name, data in snapshot(golden.path).items()
    }
    assert {
        "block-000000000000000.mcs": "4718df8c769d207d",
        "body-000000000000000.mcs": "04d9336b5085120b",
        "commit-000000000000001.mcs": "c6e76068da04f8e6",
        "gist-v0-l1-000000000000000.mcs": "fe922c96a9edbff7",
        "log-000002.mcl": "0232f6bf2209e38d",
        "manifest-000001.json": "8ce7e6ad182f8391",
        "manifest-000002.json": "2b492cdaec8dbc26",
        "message-000000000000000.mcs": "92f16f216cda4b4a",
    } == digests


def test_a_frame_has_the_header_of_the_specification(golden, oracle):
    data = (golden.path / "log-000002.mcl").read_bytes()
    assert (b"MCLF", 1, 0, 1) == (data[:4], data[4], data[5], int.from_bytes(data[6:8], "little"))
    assert (2, 1) == (
        int.from_bytes(data[8:16], "little"),
        int.from_bytes(data[16:20], "little"),
    )
    assert oracle.commits[0]["chain"].tobytes()[:8] == data[28:36]


def test_a_segment_is_header_payload_checksums_and_digest(golden, oracle):
    data = (golden.path / "block-000000000000000.mcs").read_bytes()
    payload = b"".join(oracle.blocks)
    assert 64 + len(payload) + 4 + 32 == len(data)
    assert payload == data[64 : 64 + len(payload)]
    assert blake2b(data[:64] + data[-36:-32], digest_size=32).digest() == data[-32:]
    listed = json.loads((golden.path / "manifest-000002.json").read_bytes())["segments"]
    assert data[-32:].hex() in {info["digest"] for info in listed}


def test_files_and_folder_are_private_under_any_umask(opened, oracle, eager, folder):
    before = os.umask(0)
    try:
        store = opened("create")
        store.commit(oracle.batch(100))
        store.flush()
        assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
        assert 0o700 == stat.S_IMODE(folder.stat().st_mode)
    finally:
        os.umask(before)


@pytest.mark.parametrize("is_sealed", [True, False])
def test_ids_texts_and_gists_lie_in_the_files_as_they_are(opened, oracle, folder, is_sealed, eager):
    store = opened("create")
    batch = oracle.batch(32 * 3_000)
    text = b"a sentence somebody said once " * 2_000
    store.commit(attrs.evolve(batch, bodies=(text,)))
    store.put_gists(oracle.gists(0, 3_000, row_bytes=64))
    if is_sealed:
        store.flush()
    store.close()
    raw = b"".join(path.read_bytes() for path in folder.iterdir())
    assert text in raw
    assert b"".join(oracle.blocks) in raw
    assert oracle.gists(0, 3_000, row_bytes=64).rows.tobytes() in raw


def test_files_are_at_most_five_percent_larger_than_what_they_hold(opened, oracle, folder, eager):
    store = opened("create")
    payload = 0
    for first in range(0, 8_192, 2_048):
        batch = oracle.batch(32 * 2_048, n_messages=16)
        store.commit(attrs.evolve(batch, bodies=(b"x" * 14_000,) * 16))
        gists = oracle.gists(first, first + 2_048, row_bytes=512)
        store.put_gists(gists)
        payload += batch.blocks.nbytes + 16 * 14_000 + gists.rows.nbytes
    store.flush()
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size <= 1.05 * payload


# --- manifests --------------------------------------------------------------------------------


def test_two_manifests_are_kept_and_one_log(opened, oracle, folder, eager):
    store = opened("create")
    for _ in range(5):
        store.commit(oracle.batch(40))
        store.flush()
    names = {path.name for path in folder.iterdir() if path.suffix != ".mcs"}
    assert {"manifest-000005.json", "manifest-000006.json", "log-000006.mcl"} == names


def rewritten(path, **changes):
    """Change a manifest and give it a digest that holds."""
    found = manifests.decode_manifest(path.read_bytes(), path)
    body = json.loads(path.read_bytes())
    del body["digest"]
    body.update(changes)
    data = json.dumps(body).encode()[:-1]
    digest = blake2b(data, digest_size=32).hexdigest().encode()
    path.write_bytes(data + b',"digest":"' + digest + b'"}\n')
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"n_blocks": 3},
        {"seq": 2},
        {"number": 7},
        {"chain": "zz"},
        {"salt": ""},
        {"segments": None},
        {"segments": [{"kind": "block"}]},
        {"segments": [{"kind": "else", "first": 0, "rows": 1, "stride": 1, "payload": 1}]},
        {"tail": "abc"},
        {"n_tokens": 1e300},
    ],
)
def test_a_manifest_that_cannot_be_is_damage(golden, opened, changes):
    rewritten(golden.path / "manifest-000002.json", **changes)
    with pytest.raises(CorruptError):
        opened("read")


def test_a_newer_format_is_named(golden, opened):
    rewritten(golden.path / "manifest-000002.json", format=2)
    with pytest.raises(FormatVersionError) as caught:
        opened("read")
    assert (2, 1) == (caught.value.found, caught.value.supported)


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\0" * 500, b'{"format":1}' * 50])
def test_what_is_no_manifest_is_damage_and_not_a_fallback(golden, opened, data):
    (golden.path / "manifest-000002.json").write_bytes(data)
    for mode in ("read", "write"):
        with pytest.raises(CorruptError, match="manifest-000002"):
            opened(mode)


# --- refusals ---------------------------------------------------------------------------------


def test_another_block_width_is_refused(golden):
    with pytest.raises(CorruptError, match="64 bytes"):
        golden.open("read", Header(block_bytes=128))


@pytest.mark.parametrize(
    "name", ["log-000002.mcl", "manifest-000002.json", "block-000000000000000.mcs"]
)
@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder"])
def test_row09_links_and_devices_are_refused(golden, opened, tmp_path, name, kind):
    file = golden.path / name
    file.rename(tmp_path / "elsewhere")
    if kind == "symlink":
        file.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(file)
    else:
        file.mkdir()
    for mode in ("read", "write"):
        with pytest.raises(ConfigError) as caught:
            opened(mode)
        assert "path" == caught.value.field


def test_row09_a_log_with_two_names_is_refused_a_segment_is_not(golden, opened, tmp_path):
    os.link(golden.path / "block-000000000000000.mcs", tmp_path / "second name")
    assert 2 == opened("read").state().seq
    os.link(golden.path / "log-000002.mcl", tmp_path / "third name")
    with pytest.raises(ConfigError, match="hard link"):
        opened("read")


def test_files_that_are_not_ours_are_left_alone(golden, opened, snapshot):
    (golden.path / "notes.txt").write_text("mine")
    opened("write").close()
    assert b"mine" == snapshot(golden.path)["notes.txt"]


def test_options_are_refused(folder):
    from megacontext_filesystem.store import FilesystemStorage

    with pytest.raises(ConfigError, match="takes none"):
        FilesystemStorage(folder, {"threads": "1"}).open("create", Header(block_bytes=64))
    assert not folder.exists()


def test_row23_a_store_cannot_be_pickled_and_shows_where_it_is(golden):
    with pytest.raises(TypeError, match="data-000001"):
        pickle.dumps(golden)
    assert f"FilesystemStorage({str(golden.path)!r})" == repr(golden)


def test_gists_go_on_without_a_gap_and_keep_their_width(opened, oracle):
    store = opened("create")
    store.commit(oracle.batch(3_200))
    store.put_gists(oracle.gists(0, 5))
    for wrong in (
        oracle.gists(6, 8),
        oracle.gists(4, 6),
        oracle.gists(5, 6, row_bytes=8),
        attrs.evolve(oracle.gists(5, 7), trust=np.zeros(1, np.uint8)),
        attrs.evolve(oracle.gists(5, 7), rows=np.zeros((2, 20), np.int8)),
    ):
        with pytest.raises(InvariantError):
            store.put_gists(wrong)
    store.put_gists(oracle.gists(5, 5))
    assert ((0, 1, 5),) == store.state().gist_rows
