import msgspec
import numpy as np
import pytest

from megacontext_sdk.contracts.disk import Disk
from megacontext_sdk.errors import (
    BundleError,
    ConfigError,
    CorruptError,
    FormatVersionError,
    ReadOnlyError,
    SessionNotFoundError,
    StorageFullError,
)
from megacontext_sdk.memory.exchange.bundle import write_bundle
from megacontext_sdk.memory.exchange.bundle_check import check_bundle
from megacontext_sdk.memory.exchange.bundle_reader import open_bundle
from megacontext_sdk.memory.lod import Span


@pytest.fixture
def meta(kit):
    return kit.meta()


@pytest.fixture
def store(kit, meta):
    return kit.fill(kit.store(meta), meta)


@pytest.mark.parametrize("n_turns", [0, 1, 12, 40])
@pytest.mark.parametrize("token_bytes", [2, 4])
def test_a_bundle_holds_every_row_of_the_memory(tmp_path, kit, n_turns, token_bytes):
    meta = kit.meta(token_bytes=token_bytes)
    store = kit.fill(kit.store(meta), meta, n_turns) if n_turns else kit.store(meta)
    done = write_bundle(store, meta, tmp_path / "a.bundle")
    with open_bundle(tmp_path / "a.bundle") as bundle:
        check_bundle(bundle, kit.vocab_size)
        assert kit.content(store) == kit.content(bundle)
        state = store.state()
        chain = state.chain if state.seq else meta.root
        assert chain.hex() == bundle.header.chain
    # Of a turn two rows begin a message; the settings rows and the parts of a reply do not.
    assert (state.n_tokens, 2 * n_turns + 2 * bool(n_turns)) == (done.n_tokens, done.n_messages)
    assert (tmp_path / "a.bundle").stat().st_size == done.n_bytes


def test_the_same_memory_gives_the_same_bytes(tmp_path, store, meta):
    for name in ("one", "two"):
        write_bundle(store, meta, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_bundle_of_a_bundle_is_the_same_bundle(tmp_path, store, meta):
    write_bundle(store, meta, tmp_path / "one")
    with open_bundle(tmp_path / "one") as bundle:
        write_bundle(bundle, meta, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_bodies_are_cut_into_pieces_that_fit_into_memory(tmp_path, kit, meta, monkeypatch):
    monkeypatch.setattr("megacontext_sdk.memory.exchange.bundle.MAX_PIECE_BYTES", 4 * 500)
    store = kit.fill(kit.store(meta), meta)
    write_bundle(store, meta, tmp_path / "a.bundle")
    with open_bundle(tmp_path / "a.bundle") as bundle:
        pieces = [part for part in bundle.header.parts if part.kind == "bodies"]
        assert len(pieces) > 3
        assert max(part.length for part in pieces) <= 500
        check_bundle(bundle, kit.vocab_size)
        assert kit.content(store) == kit.content(bundle)
        numbers = np.array([30, 2, 2, 17, 0, 31])
        assert store.read_bodies(numbers) == bundle.read_bodies(numbers)


def test_rows_come_in_the_order_and_with_the_repeats_asked(tmp_path, store, meta):
    write_bundle(store, meta, tmp_path / "a.bundle")
    numbers = np.array([3, 1, 1, 9, 4])
    with open_bundle(tmp_path / "a.bundle") as bundle:
        assert np.array_equal(store.read_blocks(numbers), bundle.read_blocks(numbers))
        gists, found = (one.read_gists(0, 1, numbers) for one in (store, bundle))
        assert np.array_equal(gists.rows, found.rows)
        assert np.array_equal(gists.trust, found.trust)
        beyond = bundle.read_gists(0, 1, np.array([2, 10**6]))
        assert [True, False] == beyond.present.tolist()
        assert [False] == bundle.read_gists(7, 1, np.array([2])).present.tolist()
        for read in (
            lambda: bundle.read_blocks(np.array([10**6])),
            lambda: bundle.read_messages(0, 10**6),
            lambda: bundle.read_bodies(np.array([-1])),
            lambda: bundle.read_commits(0, 1),
        ):
            with pytest.raises(LookupError):
                read()


def test_a_bundle_may_end_at_an_earlier_commit(tmp_path, kit, store, meta):
    write_bundle(store, meta, tmp_path / "a.bundle", upto_seq=5)
    with open_bundle(tmp_path / "a.bundle") as bundle:
        check_bundle(bundle, kit.vocab_size)
        assert 5 == bundle.state().seq
        assert store.read_commits(1, 6).tobytes() == bundle.read_commits(1, 6).tobytes()


def test_what_was_forgotten_is_forgotten_in_the_bundle(tmp_path, kit, store, meta):
    redacted = kit.redacted(store, meta, [Span(100, 190)], [2, 3, 4])
    write_bundle(redacted, meta, tmp_path / "a.bundle")
    with open_bundle(tmp_path / "a.bundle") as bundle:
        check_bundle(bundle, kit.vocab_size)
        assert kit.content(redacted) == kit.content(bundle)
        assert [b"", b"", b""] == bundle.read_bodies(np.array([2, 3, 4]))
        assert kit.forgotten == bundle.read_messages(2, 3)["flags"][0] & kit.forgotten
    raw = (tmp_path / "a.bundle").read_bytes()
    assert all(store.read_bodies(np.array([n]))[0] not in raw for n in (2, 3, 4))


def test_the_header_says_what_a_stranger_needs(tmp_path, kit, store):
    parent = {"uuid": "f" * 32, "seq": 3, "chain": "e" * 32}
    meta = kit.meta(parent=parent)
    write_bundle(store, meta, tmp_path / "a.bundle")
    header, _ = kit.opened_up((tmp_path / "a.bundle").read_bytes())
    said = msgspec.json.decode(header)
    parts = said.pop("parts")
    assert {
        "format": [1, 0],
        "uuid": meta.uuid,
        "root": meta.root.hex(),
        "block_size": 32,
        "token_bytes": 2,
        "base_fp": "a" * 64,
        "tokenizer_fp": "b" * 64,
        "parent": parent,
        "seq": store.state().seq,
        "chain": store.state().chain.hex(),
        "n_tokens": store.state().n_tokens,
        "n_messages": store.state().n_messages,
    } == said
    assert ["commits", "blocks", "tail", "messages", "bodies", "gist_rows", "gist_trust"] == list(
        dict.fromkeys(part["kind"] for part in parts)
    )


def test_progress_runs_to_the_last_token(tmp_path, store, meta):
    seen = []
    write_bundle(store, meta, tmp_path / "a.bundle", progress=lambda *pair: seen.append(pair))
    n_tokens = store.state().n_tokens
    assert sorted(seen) == seen
    assert {n_tokens} == {total for _, total in seen}
    assert n_tokens - 50 <= seen[-1][0] <= n_tokens


# --- the file ------------------------------------------------------------------------------------


def test_an_existing_file_is_replaced_only_if_asked(tmp_path, store, meta):
    path = tmp_path / "a.bundle"
    path.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="exists already"):
        write_bundle(store, meta, path)
    assert b"mine" == path.read_bytes()
    write_bundle(store, meta, path, overwrite=True)
    assert path.read_bytes().startswith(b"MCBUNDLE")
    assert ["a.bundle"] == [entry.name for entry in tmp_path.iterdir()]


@pytest.mark.parametrize("make", ["mkdir", "symlink"])
def test_what_is_no_file_is_never_replaced(tmp_path, store, meta, make):
    path = tmp_path / "a.bundle"
    if make == "mkdir":
        path.mkdir()
    else:
        (tmp_path / "other").write_bytes(b"mine")
        path.symlink_to(tmp_path / "other")
    with pytest.raises(ConfigError, match="exists already"):
        write_bundle(store, meta, path, overwrite=True)


def test_the_file_is_for_its_owner_only(tmp_path, store, meta):
    write_bundle(store, meta, tmp_path / "a.bundle")
    assert 0o600 == (tmp_path / "a.bundle").stat().st_mode & 0o777


@pytest.mark.parametrize("path", ["s3://bucket/a.bundle", "a\0b", ""])
def test_a_place_that_is_no_local_path_is_refused(store, meta, path):
    with pytest.raises(ConfigError):
        write_bundle(store, meta, path)


def test_a_missing_folder_is_refused(tmp_path, store, meta):
    with pytest.raises(ConfigError, match="does not exist"):
        write_bundle(store, meta, tmp_path / "nowhere" / "a.bundle")


class FullDisk(Disk):
    """A disk that is full after some calls."""

    def __init__(self, n_writes):
        self.n_writes = n_writes

    def write(self, descriptor, buffers):
        self.n_writes -= 1
        if self.n_writes < 0:
            raise OSError(28, "No space left on device")
        super().write(descriptor, buffers)


@pytest.mark.parametrize("n_writes", range(8))
def test_a_full_disk_leaves_nothing(tmp_path, store, meta, n_writes):
    with pytest.raises(StorageFullError):
        write_bundle(store, meta, tmp_path / "a.bundle", disk=FullDisk(n_writes))
    assert [] == list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_nothing(tmp_path, store, meta):
    def stop(_done, _total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(store, meta, tmp_path / "a.bundle", progress=stop)
    assert [] == list(tmp_path.iterdir())


def test_what_a_killed_export_left_is_written_over(tmp_path, store, meta):
    (tmp_path / "a.bundle.part").write_bytes(b"half")
    write_bundle(store, meta, tmp_path / "a.bundle")
    assert ["a.bundle"] == [entry.name for entry in tmp_path.iterdir()]


def test_a_store_that_loses_gists_meanwhile_is_an_error(tmp_path, store, meta, monkeypatch):
    real = store.read_gists

    def lossy(version, lod, nodes):
        return real(version, lod, np.asarray(nodes) + 10**6 * (len(nodes) > 1))

    monkeypatch.setattr(store, "read_gists", lossy)
    with pytest.raises(CorruptError, match="gist_rows"):
        write_bundle(store, meta, tmp_path / "a.bundle")
    assert [] == list(tmp_path.iterdir())


@pytest.mark.skipif("__import__('os').geteuid() == 0", reason="root may write anywhere")
def test_a_folder_without_permission_is_a_typed_error(tmp_path, store, meta):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ReadOnlyError):
        write_bundle(store, meta, tmp_path / "locked" / "a.bundle")


# --- opening -------------------------------------------------------------------------------------


def test_a_missing_bundle_is_not_found(tmp_path):
    with pytest.raises(SessionNotFoundError):
        open_bundle(tmp_path / "nothing")


@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    import os

    path = tmp_path / "a.bundle"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path = "/dev/zero"
    with pytest.raises(ConfigError, match="regular file|cannot be read"):
        open_bundle(path)


def test_a_newer_format_says_so(tmp_path, kit, store, meta):
    write_bundle(store, meta, tmp_path / "a.bundle")
    header, parts = kit.opened_up((tmp_path / "a.bundle").read_bytes())
    for found in ([1, 1], [2, 0], [7, 3]):
        said = msgspec.json.decode(header) | {"format": found, "something": "new"}
        (tmp_path / "new").write_bytes(kit.resealed(msgspec.json.encode(said), parts))
        with pytest.raises(FormatVersionError, match=f"format {found[0]}.{found[1]}") as caught:
            open_bundle(tmp_path / "new")
        assert (found, [1, 0]) == (caught.value.found, caught.value.supported)


def test_a_file_that_shrinks_while_it_is_read_is_damage(tmp_path, store, meta):
    write_bundle(store, meta, tmp_path / "a.bundle")
    with open_bundle(tmp_path / "a.bundle") as bundle:
        with (tmp_path / "a.bundle").open("r+b") as file:
            file.truncate(2_000)
        with pytest.raises(BundleError, match="ends too early"):
            check_bundle(bundle, None)
