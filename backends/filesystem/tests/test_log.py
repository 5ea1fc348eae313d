"""The open log under damage: torn tails are cut, everything else is noticed or harmless."""

import itertools

import numpy as np
import pytest

from megacontext_filesystem import frames
from megacontext_sdk.errors import CorruptError

FRAME = frames.HEADER_BYTES


@pytest.fixture
def written(opened, oracle, contents, folder):
    """Return the log of six commits and some gists, the ends of its frames, and each prefix."""
    store = opened("create")
    ends, prefixes = [0], [contents(store)]
    for number in range(5):
        store.commit(oracle.batch(20 + number, n_messages=number % 3))
        ends.append(store._view.log.size)
        prefixes.append(contents(store))
        if number in {1, 3}:
            first = 0 if number == 1 else 2
            store.put_gists(oracle.gists(first, first + 2))
            ends.append(store._view.log.size)
            prefixes.append(contents(store))
    store.close()
    return folder / "log-000001.mcl", ends, prefixes


def without_gists(held):
    state = held["state"]
    return {**held, "gists": [], "state": (state.seq, state.chain, state.n_tokens, state.tail)}


def test_a_log_cut_at_any_byte_ends_at_the_last_whole_frame(written, opened, contents):
    log, ends, prefixes = written
    data = log.read_bytes()
    assert ends[-1] == len(data)
    for size in range(ends[-4], len(data) + 1):
        log.write_bytes(data[:size])
        whole = max(at for at, end in enumerate(ends) if end <= size)
        reader = opened("read")
        assert prefixes[whole] == contents(reader), size
        reader.close()
        assert size == log.stat().st_size  # reading changes nothing
        if size % 8 == 0 or size in ends:
            writer = opened("write")
            assert prefixes[whole] == contents(writer), size
            assert ends[whole] == log.stat().st_size
            writer.close()


def test_writing_goes_on_after_a_torn_tail(written, opened, contents, oracle):
    log, _ends, _prefixes = written
    log.write_bytes(log.read_bytes()[:-7])
    del oracle.commits[-1], oracle.messages[-1:], oracle.bodies[-1:]
    store = opened("write")
    row = store.read_commits(4, 5)[0]
    oracle.n_tokens = int(row["start"] + row["n_tokens"])
    oracle.tail = store.state().tail
    oracle.blocks = oracle.blocks[: store.state().n_blocks]
    store.commit(oracle.batch(50))
    held = contents(store)
    store.close()
    assert held == contents(opened("read"))


def refusal(opened):
    try:
        opened("read").close()
    except CorruptError as error:
        return error
    return None


def test_every_bit_flip_is_detected_or_costs_gists_only(written, opened, contents):
    log, ends, prefixes = written
    data = log.read_bytes()
    shown = {at: without_gists(prefix) for at, prefix in enumerate(prefixes)}
    lost = detected = harmless = 0
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        log.write_bytes(flipped)
        frame = max(number for number, end in enumerate(ends) if end <= at)
        error = refusal(opened)
        if error is not None:
            assert (log.name, ends[frame]) == (error.where, error.offset)
            detected += 1
            continue
        store = opened("read")
        held = without_gists(contents(store))
        store.close()
        if held == shown[len(shown) - 1]:
            assert data[ends[frame] + 4] == frames.GISTS
            harmless += 1
        else:
            # Only the newest commit may look like a tail that was torn; HEAD knows better.
            assert held == shown[len(shown) - 2]
            assert frame == len(ends) - 2
            lost += 1
    assert detected > lost + harmless > harmless > 0
    assert lost == ends[-1] - ends[-2]


@pytest.mark.parametrize("size", [16, 512])
def test_zeros_in_the_middle_are_damage(written, opened, size):
    log, ends, _prefixes = written
    data = bytearray(log.read_bytes())
    data[ends[1] : ends[1] + size] = bytes(size)
    log.write_bytes(data)
    for mode in ("read", "write"):
        before = log.read_bytes()
        with pytest.raises(CorruptError, match="middle"):
            opened(mode)
        assert before == log.read_bytes()


@pytest.mark.parametrize("how", ["swapped", "doubled", "dropped", "first dropped", "reversed"])
def test_whole_frames_out_of_place_are_damage(written, opened, how):
    log, ends, _prefixes = written
    data = log.read_bytes()
    frame = [data[start:end] for start, end in itertools.pairwise(ends)]
    order = {
        "swapped": [0, 2, 1, *range(3, len(frame))],
        "doubled": [0, 1, 1, *range(2, len(frame))],
        "dropped": [0, 2, *range(3, len(frame))],
        "first dropped": range(1, len(frame)),
        "reversed": reversed(range(len(frame))),
    }[how]
    log.write_bytes(b"".join(frame[at] for at in order))
    with pytest.raises(CorruptError):
        opened("read")


def test_a_log_of_another_store_is_not_taken(written, opened, tmp_path, oracle):
    log, _ends, _prefixes = written
    other = opened("create", tmp_path / "other")
    other.close()
    (tmp_path / "other" / "log-000001.mcl").write_bytes(log.read_bytes())
    assert 0 == opened("read", tmp_path / "other").state().seq  # HEAD says that this is too little


def test_a_body_that_holds_frames_does_not_pass_for_a_log(written, opened, oracle, contents):
    """A torn commit whose text contains whole frames of another store is still a torn tail."""
    import attrs

    log, ends, prefixes = written
    planted = log.read_bytes()
    store = opened("write")
    batch = oracle.batch(10)
    store.commit(attrs.evolve(batch, bodies=(planted * 2,)))
    store.close()
    data = bytearray(log.read_bytes())
    salted = data[ends[-1] + 200 :]
    assert planted[:FRAME] in salted
    log.write_bytes(data[:-1])
    # The same salt: the worst case. Their chain and seq are those of the past.
    assert prefixes[-1] == contents(opened("read"))


# --- what was never flushed proves nothing ----------------------------------------------------


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_without_a_flush_a_lost_commit_takes_the_later_ones_along(opened, oracle, contents, folder):
    """A power cut may keep a later page and lose an earlier one: never one in the middle."""
    store = opened("create")
    store.commit(oracle.batch(10))
    held, end = contents(store), store._view.log.size
    for _ in range(3):
        store.commit(oracle.batch(10), sync=False)
    store.close()
    flip(folder / "log-000001.mcl", end + 60)
    assert held == contents(opened("read"))
    assert held == contents(opened("write"))
    assert end == (folder / "log-000001.mcl").stat().st_size


def test_a_flush_makes_what_went_before_it_proof(opened, oracle, folder):
    store = opened("create")
    for _ in range(3):
        store.commit(oracle.batch(10), sync=False)
    end = store._view.log.size
    store.flush()
    store.commit(oracle.batch(10), sync=False)
    store.close()
    flip(folder / "log-000001.mcl", end - 3)
    with pytest.raises(CorruptError, match="middle"):
        opened("read")


def test_gists_lost_between_two_commits_are_missing_and_later_ones_too(opened, oracle, folder):
    store = opened("create")
    store.commit(oracle.batch(640))
    store.put_gists(oracle.gists(0, 5))
    at = store._view.log.size
    store.put_gists(oracle.gists(5, 9))
    store.put_gists(oracle.gists(0, 4, lod=2))
    store.commit(oracle.batch(64))
    store.put_gists(oracle.gists(9, 12))
    store.close()
    flip(folder / "log-000001.mcl", at + 50)
    again = opened("write")
    assert (2, ((0, 1, 5), (0, 2, 4))) == (again.state().seq, again.state().gist_rows)
    again.put_gists(oracle.gists(5, 12))
    again.close()
    found = opened("read").read_gists(0, 1, np.arange(12))
    assert oracle.gists(0, 12).rows.tobytes() == found.rows.tobytes()


def test_a_log_of_many_tiny_commits_is_sealed_by_count(opened, oracle, monkeypatch, folder):
    from megacontext_filesystem import store as module

    monkeypatch.setattr(module, "_SEAL_FRAMES", 20)
    store = opened("create")
    for _ in range(45):
        store.commit(oracle.batch(3))
    assert 5 == store._view.log.n_frames
    assert {"manifest-000002.json", "manifest-000003.json"} == {
        path.name for path in folder.glob("manifest*")
    }
    store.close()
    assert b"".join(oracle.blocks) == opened("read").read_blocks(np.arange(4)).tobytes()
