"""Scrub: every planted damage is found, and a sound memory is called sound."""

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import GistBatch
from megacontext_sdk.errors import CorruptError
from megacontext_sdk.memory.directory.replay import Redaction, copy_commits
from megacontext_sdk.memory.directory.scrub import scrub_memory
from megacontext_sdk.memory.journal import MessageRecord
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.messages.body import MessageBody, encode_body

N_COMMITS = 20
N_TOKENS = 67


def ids_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 50_000, n).astype(np.int32)


def body_of(seed):
    return encode_body(MessageBody(text=f"text {seed}"))


def fill(memory):
    journal = memory.journal
    for seed in range(N_COMMITS):
        trust = 1 if seed == 7 else 3
        message = MessageRecord(0, trust, 0, 1, N_TOKENS, body_of(seed))
        journal.append(ids_of(N_TOKENS, seed), [message], key=bytes([seed + 1] * 16)).wait()
        if seed % 8 == 0:
            journal.update_settings({"n": seed}).wait()
    trust = np.full(journal.n_blocks, 3, np.uint8)
    trust[7 * N_TOKENS // 32 : (8 * N_TOKENS - 1) // 32 + 1] = 1
    for lod, values in ((1, trust), (2, trust[:32].min(keepdims=True))):
        nodes = np.arange(len(values), dtype=np.uint64)
        rows = np.ones((len(values), 16), np.uint8)
        journal.put_gists(GistBatch(version=1, lod=lod, nodes=nodes, trust=values, rows=rows))
    journal.flush()


@pytest.fixture
def alice(opened):
    memory = opened()
    fill(memory)
    return memory


class Lying:
    """Wraps a store and changes what one method returns."""

    def __init__(self, storage, **changes):
        self._storage, self._changes = storage, changes

    def __getattr__(self, name):
        real = getattr(self._storage, name)
        change = self._changes.get(name)
        if change is None:
            return real
        return lambda *arguments: change(real(*arguments), *arguments)


def scrubbed(memory, **changes):
    lying = Lying(memory.storage, **changes)
    return scrub_memory(attrs.evolve(memory, storage=lying, lock=None, head=None))


def test_a_sound_memory_is_sound(alice):
    seen = []
    report = scrub_memory(alice, progress=lambda done, total: seen.append((done, total)))
    assert report.is_sound, report.problems
    n_tokens = N_COMMITS * N_TOKENS
    assert (N_COMMITS + 3, n_tokens // 32, N_COMMITS + 3, n_tokens // 32 + 1) == (
        report.commits,
        report.blocks,
        report.messages,
        report.gists,
    )
    assert report.bytes_read > 4 * n_tokens
    assert (n_tokens, n_tokens) == seen[-1]
    assert str(alice.path) == report.path


def test_a_forgotten_part_is_no_damage(alice):
    def build(source, target):
        redaction = Redaction((Span(100, 180),), np.array([2, 3]))
        copy_commits(source, target, root=alice.meta.root, token_bytes=2, redaction=redaction)

    report = scrub_memory(alice.switch(build, keep_old=False))
    assert report.is_sound, report.problems


def test_a_fresh_memory_and_one_in_this_process_are_sound(tmp_path, opened):
    assert scrub_memory(opened()).is_sound
    memory = opened(tmp_path / "x", backend="memory", factory=InMemoryStorage)
    fill(memory)
    report = scrub_memory(memory)
    assert (True, None) == (report.is_sound, report.path)


def changed(array, at, field=None, value=None):
    copy = array.copy()
    if field is not None:
        copy[field][at] = copy[field][at] + 1 if value is None else value
    else:
        copy[at] ^= 1
    return copy


def in_commit(seq, field, value=None):
    def change(rows, start, stop):
        return changed(rows, seq - start, field, value) if start <= seq < stop else rows

    return change


def in_message(number, field, value):
    def change(rows, start, stop):
        return changed(rows, number - start, field, value) if start <= number < stop else rows

    return change


def in_body(number, value):
    def change(bodies, numbers):
        return [value if at == number else body for at, body in zip(numbers, bodies, strict=True)]

    return change


def in_block(number):
    def change(blocks, numbers):
        return changed(blocks, np.flatnonzero(np.asarray(numbers) == number))

    return change


def failing(number):
    def change(result, numbers, *_):
        if number in np.asarray(numbers):
            raise CorruptError("a bad page", where="page", offset=None)
        return result

    return change


def in_gists(node, field):
    def change(found, _version, lod, nodes):
        if lod != 1 or node not in nodes:
            return found
        at = np.flatnonzero(np.asarray(nodes) == node)
        if field == "width":
            return attrs.evolve(found, rows=found.rows[:, :-1])
        if field == "trust":
            return attrs.evolve(found, trust=changed(found.trust, at))
        present = found.present.copy()
        present[at] = False
        return attrs.evolve(found, present=present)

    return change


@pytest.mark.parametrize(
    ("where", "changes", "says"),
    [
        ("a gap in seq", {"read_commits": in_commit(5, "seq")}, "commit 5 is missing"),
        ("a moved commit", {"read_commits": in_commit(5, "start")}, "does not start where"),
        ("a key changed", {"read_commits": in_commit(5, "key", b"x" * 16)}, "chain does not hold"),
        ("a link", {"read_commits": in_commit(5, "chain", b"x" * 16)}, "chain does not hold"),
        ("a count", {"read_commits": in_commit(5, "n_tokens")}, "do not tile"),
        ("the first commit", {"read_commits": in_commit(1, "ts_us")}, "at commit 1"),
        ("the last commit", {"read_commits": in_commit(23, "ts_us")}, "at commit 23"),
        ("a message moved", {"read_messages": in_message(9, "start", 3)}, "do not tile"),
        ("a trust raised", {"read_messages": in_message(9, "trust", 4)}, "chain does not hold"),
        ("a body", {"read_bodies": in_body(9, b"other")}, "chain does not hold"),
        ("an id", {"read_blocks": in_block(11)}, "chain does not hold"),
        ("an unreadable block", {"read_blocks": failing(11)}, "cannot be read (CorruptError)"),
        ("an unreadable body", {"read_bodies": failing(9)}, "cannot be read (CorruptError)"),
        ("a narrow gist", {"read_gists": in_gists(12, "present")}, "node 12 is missing"),
        ("a gist's trust", {"read_gists": in_gists(12, "trust")}, "node 12 is not trusted"),
    ],
)
def test_each_planted_damage_is_found(alice, where, changes, says):
    report = scrubbed(alice, **changes)
    assert not report.is_sound, where
    assert any(says in problem for problem in report.problems), report.problems
    assert not any("text" in problem for problem in report.problems)


def test_it_goes_on_behind_the_damage(alice):
    def change(bodies, numbers):
        return [b"x" if at in {4, 15} else body for at, body in zip(numbers, bodies, strict=True)]

    report = scrubbed(alice, read_bodies=change)
    assert 2 == sum("chain does not hold" in problem for problem in report.problems)
    assert N_COMMITS + 3 - 2 == report.commits


def state_with(**changes):
    return {"state": lambda state: attrs.evolve(state, **changes)}


def test_counts_that_contradict_each_other_are_found(alice):
    assert not scrubbed(alice, **state_with(tail=b"")).is_sound
    report = scrubbed(alice, **state_with(gist_rows=((1, 1, 41), (1, 2, 9))))
    assert any("9 rows, more than there are nodes" in what for what in report.problems)


def store(memory, ids, message, **options):
    memory.journal.append(ids, [message], **options).wait()


def test_what_the_chain_cannot_know_is_checked_too(opened):
    """Rows that a faulty writer chained properly."""
    memory = opened()
    store(memory, ids_of(3), MessageRecord(0, 3, 0, 1, 3, b"\xc1 no msgpack"))
    store(memory, ids_of(3), MessageRecord(9, 3, 0, 1, 3, b""))
    store(memory, ids_of(3), MessageRecord(0, 3, 2, 1, 3, b"\x80"))
    report = scrub_memory(memory)
    assert [
        "message 0 has a body that cannot be decoded",
        "message 1 has a role or trust that does not exist",
        "message 2 has a body where there can be none",
    ] == list(report.problems)


def test_ids_missing_without_a_forget_and_doubled_keys_are_found(alice):
    def build(source, target):
        redaction = Redaction((Span(100, 110),), np.array([], np.int64))
        doubled = Lying(source, read_commits=in_commit(6, "key", bytes([1] * 16)))
        copy_commits(doubled, target, root=alice.meta.root, token_bytes=2, redaction=redaction)

    report = scrub_memory(alice.switch(build, keep_old=False))
    assert any("lacks token ids" in what for what in report.problems), report.problems
    assert any("commits 1 and 6 carry the same key" == what for what in report.problems)


def test_a_damaged_slot_of_head_is_found(alice):
    data = bytearray((alice.path / "HEAD").read_bytes())
    data[3] ^= 1
    (alice.path / "HEAD").write_bytes(data)
    assert ["1 of 2 slots of HEAD are damaged"] == list(scrub_memory(alice).problems)


def test_many_problems_are_counted_not_listed(opened):
    memory = opened()
    messages = [MessageRecord(0, 3, 0, 1, 0, b"\xc1")] * 250
    memory.journal.append(np.empty(0, np.int32), messages).wait()
    problems = scrub_memory(memory).problems
    assert (101, "and 150 more") == (len(problems), problems[-1])


def test_it_reads_no_faster_than_asked(alice):
    now, waits = [0.0], []

    def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds

    report = scrub_memory(alice, bytes_per_second=1_000, clock=lambda: now[0], sleep=sleep)
    assert report.bytes_read / 1_000 == pytest.approx(sum(waits))
    assert report.seconds == pytest.approx(sum(waits))
