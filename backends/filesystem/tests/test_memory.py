"""Whole memories and sessions on plain files: kills, readers beside a writer, weaker durability."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from megacontext_filesystem import megacontext_storages
from megacontext_filesystem.store import FilesystemStorage
from megacontext_sdk import MemorySession
from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.storage import GistBatch
from megacontext_sdk.errors import CommittedDataLostError, ConfigError, SessionLockedError
from megacontext_sdk.memory.directory.head import HeadFile
from megacontext_sdk.memory.directory.vault import Fingerprints, open_memory
from megacontext_sdk.memory.journal import MessageRecord
from megacontext_sdk.memory.lod import Span


@pytest.fixture
def memory(tmp_path):
    """Open memories that are closed at the end of the test."""
    handles = []

    def open_one(path=None, **changes):
        settings = {
            "backend": "filesystem",
            "factory": FilesystemStorage,
            "fingerprints": Fingerprints("a" * 64, "b" * 64),
            "vocab_size": 50_000,
            **changes,
        }
        handles.append(open_memory(tmp_path / "alice.mc" if path is None else path, **settings))
        return handles[-1]

    yield open_one
    for handle in handles:
        handle.close()


@pytest.fixture
def session(tmp_path):
    def open_one(**options):
        return MemorySession.open(
            tmp_path / "alice.mc", storage="filesystem", model="echo", w_max=512, **options
        )

    return open_one


def append(opened, ids, **options):
    message = MessageRecord(role=0, trust=3, flags=0, ts_us=1, n_tokens=len(ids), body=b"text")
    return opened.journal.append(np.asarray(ids, np.int32), [message], **options).wait()


def head_of(path):
    head = HeadFile(path / "HEAD", 1)
    try:
        return head.open(writable=False).seq
    finally:
        head.close()


# --- memories ---------------------------------------------------------------------------------


def play(opened):
    """Make the same calls on any memory and return what came of them."""
    rng = np.random.default_rng(17)
    journal = opened.journal
    for n in (1, 31, 32, 33, 128, 5_000, 0):
        ids = rng.integers(0, 50_000, n).astype(np.int32)
        cut = int(rng.integers(0, n + 1))
        messages = [
            MessageRecord(0, 3, 0, 7, cut, b"first"),
            MessageRecord(1, 2, 0, 8, n - cut, rng.bytes(int(rng.integers(0, 300)))),
        ]
        journal.append(ids, messages, key=rng.bytes(16))
        journal.update_settings({"n": n})
        first, stop = journal.gist_count(0, 1), journal.n_blocks
        if stop > first:
            rows = rng.integers(0, 255, (stop - first, 40), dtype=np.uint8)
            nodes = np.arange(first, stop, dtype=np.uint64)
            trust = np.full(len(nodes), 2, np.uint8)
            journal.put_gists(GistBatch(version=0, lod=1, nodes=nodes, trust=trust, rows=rows))
    journal.flush()
    digest = hashlib.sha256(journal.chain)
    digest.update(journal.token_ids(Span(0, journal.n_tokens)).tobytes())
    digest.update(journal.messages(0, journal.n_messages).tobytes())
    digest.update(b"".join(journal.bodies(np.arange(journal.n_messages))))
    digest.update(journal.gists(0, 1, np.arange(journal.n_blocks)).rows.tobytes())
    return journal.chain, digest.hexdigest()


def test_the_same_calls_give_the_chain_and_content_of_the_reference(tmp_path, memory):
    fixed = {"root": bytes(range(16)), "clock": lambda: 1_700_000_000_000_000}
    expected = play(memory(None, backend="memory", factory=InMemoryStorage, **fixed))
    first = memory(tmp_path / "a.mc", **fixed)
    assert expected == play(first)
    first.close()
    assert expected[0] == memory(tmp_path / "a.mc").journal.chain


def test_os_durability_moves_head_only_to_what_was_flushed(tmp_path, memory):
    opened = memory(durability="os")
    append(opened, range(40))
    append(opened, range(40))
    assert 0 == head_of(tmp_path / "alice.mc")
    opened.journal.flush()
    assert 2 == head_of(tmp_path / "alice.mc")
    append(opened, range(40))
    assert 2 == head_of(tmp_path / "alice.mc")
    opened.close()
    assert 3 == memory().journal.seq


def test_a_power_cut_takes_only_what_os_durability_never_flushed(tmp_path, memory):
    opened = memory(durability="os")
    for number in range(4):
        append(opened, range(40))
        if number == 1:
            opened.journal.flush()
    flushed = opened.storage._view.log.flushed
    shutil.copytree(tmp_path / "alice.mc", tmp_path / "cut.mc")
    log = tmp_path / "cut.mc" / "data-000001" / "log-000001.mcl"
    data = log.read_bytes()
    assert flushed < len(data)
    log.write_bytes(data[:flushed] + bytes(30) + data[flushed + 30 :])
    assert 2 == memory(tmp_path / "cut.mc").journal.seq


def test_a_log_cut_below_head_is_never_silent(tmp_path, memory):
    opened = memory()
    for _ in range(5):
        append(opened, range(50))
    opened.close()
    log = tmp_path / "alice.mc" / "data-000001" / "log-000001.mcl"
    data = log.read_bytes()
    for size in range(0, len(data), 41):
        log.write_bytes(data[:size])
        before = log.read_bytes()
        with pytest.raises(CommittedDataLostError) as caught:
            memory()
        assert 5 == caught.value.want_seq
        assert before == log.read_bytes()


# --- sessions ---------------------------------------------------------------------------------


def test_a_session_is_whole_after_reopening(session):
    with session() as first:
        first.append("Anna lives in Paris. " * 40)
        reply = first.generate("Where does Anna live?", max_new_tokens=12)
        texts = [message.text for message in first.messages()]
        tokens = first.read((0, first.messages()[-1].span.end))
    with session() as again:
        assert texts == [message.text for message in again.messages()]
        assert tokens == again.read((0, again.messages()[-1].span.end))
        assert reply.text == again.messages()[-1].text
        assert any("Paris" in hit.text for hit in again.search("Anna lives in Paris"))
        assert 0 == again._parts.tree.stats().n_missing_gists


def test_readers_see_a_memory_while_it_is_written(session, tmp_path):
    with session() as writer:
        writer.append("Before the reader came.")
        with session(read_only=True) as reader:
            writer.append("After it came.")
            writer.flush()
            assert ["Before the reader came."] == [m.text for m in reader.messages()]
            with session(read_only=True) as late:
                assert "After it came." == late.messages()[-1].text
        with pytest.raises(SessionLockedError, match=str(os.getpid())):
            session()


READING = """
    import sys
    from megacontext_sdk import MemorySession
    with MemorySession.open(
        sys.argv[1], storage="filesystem", model="echo", read_only=True
    ) as session:
        print(session.messages()[-1].text, len(session.search("Note")))
"""


def python(code, *arguments, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options
    )


def test_another_process_reads_beside_the_writer(session, tmp_path):
    with session() as writer:
        for number in range(6):
            writer.append(f"Note {number}.")
        out, err = python(READING, tmp_path / "alice.mc").communicate(timeout=60)
        assert b"" == err
        assert out.startswith(b"Note 5. ")


VICTIM = """
    import sys
    from megacontext_filesystem import store
    from megacontext_sdk import MemorySession
    store._FLUSH_SEAL_BYTES = 20_000
    with MemorySession.open(
        sys.argv[1], storage="filesystem", model="echo", w_max=512, sinks=()
    ) as session:
        number = sum(m.role == "user" for m in session.messages())
        print("ready", flush=True)
        while True:
            session.append(f"Note {number}: the code word is w{number}w. " + "Rain. " * number)
            print(number, flush=True)
            number += 1
            if number % 5 == 0:
                session.flush()
"""


@pytest.mark.parametrize("seed", range(3))
def test_row09_killed_at_random_every_acknowledged_append_is_there(session, tmp_path, seed):
    rng = random.Random(seed)
    acknowledged = 0
    for _ in range(3):
        process = python(VICTIM, tmp_path / "alice.mc")
        out = b"".join(process.stdout.readline() for _ in range(rng.randrange(2, 40)))
        process.send_signal(signal.SIGKILL)
        rest, trouble = process.communicate()
        assert (-signal.SIGKILL, b"") == (process.returncode, trouble)
        lines = (out + rest).decode().splitlines(keepends=True)[1:]
        acknowledged = max([acknowledged, *(int(line) + 1 for line in lines if line[-1] == "\n")])
        with session() as again:
            texts = [message.text for message in again.messages()]
            assert len(texts) >= acknowledged
            for number, text in enumerate(texts):
                assert text.startswith(f"Note {number}: the code word is w{number}w.")
            assert 0 == again._parts.tree.stats().n_missing_gists
            acknowledged = len(texts)


def test_os_durability_is_a_setting_of_the_session_and_shows_in_receipts(session):
    with session(durability="os") as weaker:
        assert "os" == weaker.append("Kept by the operating system.").durability
    with session() as again:
        assert "Kept by the operating system." == again.messages()[-1].text


def test_a_durability_it_does_not_offer_is_refused(memory):
    with pytest.raises(ConfigError, match="offers os, sync"):
        memory(durability="never")


def test_the_entry_point_yields_the_record_and_stays_light():
    (spec,) = megacontext_storages()
    assert ("filesystem", "megacontext-filesystem") == (spec.name, spec.requires)
    out, err = python(
        "import megacontext_filesystem, sys; print('numpy' in sys.modules)"
    ).communicate(timeout=60)
    assert (b"False\n", b"") == (out, err)
