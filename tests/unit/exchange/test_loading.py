import numpy as np
import pytest

from megacontext_sdk.errors import (
    ConfigError,
    CorruptError,
    ModelMismatchError,
    SessionLockedError,
    SessionNotFoundError,
)
from megacontext_sdk.memory.chain import FLAG_CONTINUES
from megacontext_sdk.memory.directory.manifest import read_meta
from megacontext_sdk.memory.directory.opened import Fingerprints
from megacontext_sdk.memory.directory.vault import open_memory
from megacontext_sdk.memory.exchange.bundle import write_bundle
from megacontext_sdk.memory.exchange.loading import load_memory
from megacontext_sdk.memory.exchange.retokenizing import Retokenizer
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.memory.settings import decode_settings
from megacontext_sdk.messages import decode_body

OTHER_TOKENIZER = Fingerprints("a" * 64, "c" * 64)
OTHER_BASE = Fingerprints("d" * 64, "b" * 64)


@pytest.fixture
def store(kit):
    return kit.fill(kit.store(kit.meta()), kit.meta(), 30)


@pytest.fixture
def bundle(tmp_path, kit, store):
    write_bundle(store, kit.meta(), tmp_path / "a.bundle")
    return tmp_path / "a.bundle"


@pytest.fixture
def directory(tmp_path, kit, bundle):
    """Make a memory on disk that nobody but its own model could open as a session."""
    load_memory(bundle, into=tmp_path / "first.mc", trust="keep", **kit.target())
    return tmp_path / "first.mc"


def settings_of(store):
    return dict(decode_settings(store.read_bodies(np.array([store.state().setting]))[0]))


def rendered(role, text):
    return np.array([len(role), *text.encode()], np.int32)


RETOKENIZER = Retokenizer(rendered, lambda role: np.array([1, len(role)], np.int32))


# --- the same tokenizer --------------------------------------------------------------------------


def test_trust_kept_means_the_same_memory_up_to_its_head(tmp_path, kit, store, bundle):
    meta = load_memory(bundle, into=tmp_path / "b.mc", trust="keep", **kit.target())
    loaded = kit.reopened(tmp_path / "b.mc", meta)
    assert kit.content(store) == kit.content(loaded, upto=store.state().seq)
    assert store.state().seq + 1 == loaded.state().seq
    assert kit.meta().root == meta.root
    assert kit.meta().uuid != meta.uuid
    assert read_meta(tmp_path / "b.mc") == meta


def test_a_loaded_memory_knows_where_it_comes_from(tmp_path, kit, store, bundle):
    meta = load_memory(bundle, into=tmp_path / "b.mc", name="moved", **kit.target())
    chain = store.state().chain.hex()
    assert {"uuid": kit.meta().uuid, "seq": store.state().seq, "chain": chain} == meta.parent
    assert "moved" == meta.name
    assert {
        "uuid": kit.meta().uuid,
        "seq": store.state().seq,
        "chain": chain,
        "n_tokens": store.state().n_tokens,
        "n_messages": store.state().n_messages,
        "is_capped": True,
        "is_retokenized": False,
    } == settings_of(kit.reopened(tmp_path / "b.mc", meta))["loaded_from"]


def test_trust_is_capped_at_external(tmp_path, kit, store, bundle):
    meta = load_memory(bundle, into=tmp_path / "b.mc", **kit.target())
    loaded, n = kit.reopened(tmp_path / "b.mc", meta), store.state().n_messages
    rows, before = loaded.read_messages(0, n), store.read_messages(0, n)
    plain = before["role"] != 4
    assert np.array_equal(np.minimum(before["trust"], 1)[plain], rows["trust"][plain])
    assert before["trust"][plain].max() > 1
    for field in ("start", "n_tokens", "ts_us", "role", "flags"):
        assert np.array_equal(before[field], rows[field])
    assert kit.content(store)["blocks"] == kit.content(loaded)["blocks"]
    numbers = np.flatnonzero(plain)
    assert store.read_bodies(numbers) == loaded.read_bodies(numbers)


def test_gists_of_a_stranger_are_made_again(tmp_path, kit, bundle):
    meta = load_memory(bundle, into=tmp_path / "b.mc", **kit.target())
    assert () == kit.reopened(tmp_path / "b.mc", meta).state().gist_rows


def test_settings_of_a_stranger_stay_behind_everywhere(tmp_path, kit, store, bundle):
    meta = load_memory(bundle, into=tmp_path / "b.mc", **kit.target())
    loaded = kit.reopened(tmp_path / "b.mc", meta)
    assert {"loaded_from"} == set(settings_of(loaded))
    rows = loaded.read_messages(0, store.state().n_messages)
    numbers = np.flatnonzero(rows["role"] == 4)
    assert [{}] * len(numbers) == [dict(decode_settings(b)) for b in loaded.read_bodies(numbers)]


def test_settings_that_name_other_places_are_never_taken_over(tmp_path, kit, store, bundle):
    meta = load_memory(bundle, into=tmp_path / "b.mc", trust="keep", **kit.target())
    kept = settings_of(kit.reopened(tmp_path / "b.mc", meta))
    assert "forks" in settings_of(store)
    assert {"encoders", "pins", "receipts", "loaded_from"} == set(kept)


def test_what_was_forgotten_stays_forgotten(tmp_path, kit, store):
    redacted = kit.redacted(store, kit.meta(), [Span(100, 190)], [2, 3, 4])
    write_bundle(redacted, kit.meta(), tmp_path / "a.bundle")
    target = kit.target(into=tmp_path / "b.mc", trust="keep")
    meta = load_memory(tmp_path / "a.bundle", **target)
    loaded = kit.reopened(tmp_path / "b.mc", meta)
    assert kit.content(redacted) == kit.content(loaded, upto=redacted.state().seq)


def test_another_base_with_the_same_tokenizer_drops_the_gists(tmp_path, kit, store, bundle):
    target = kit.target(into=tmp_path / "b.mc", trust="keep", fingerprints=OTHER_BASE)
    meta = load_memory(bundle, **target)
    loaded = kit.reopened(tmp_path / "b.mc", meta)
    assert "d" * 64 == meta.base_fp
    assert () == loaded.state().gist_rows
    chain = loaded.read_commits(1, store.state().seq + 1)["chain"][-1].tobytes()
    assert store.state().chain == chain


@pytest.mark.parametrize("width", [4, 9])
def test_gists_of_another_width_are_left_behind(tmp_path, kit, bundle, width):
    meta = load_memory(bundle, into=tmp_path / "b.mc", **kit.target(width=width, trust="keep"))
    assert () == kit.reopened(tmp_path / "b.mc", meta).state().gist_rows


def test_gists_that_are_not_finite_are_left_behind(tmp_path, kit, store):
    store._gists[0, 2].rows._rows[0] = 0xFF
    write_bundle(store, kit.meta(), tmp_path / "a.bundle")
    target = kit.target(into=tmp_path / "b.mc", trust="keep")
    meta = load_memory(tmp_path / "a.bundle", **target)
    assert () == kit.reopened(tmp_path / "b.mc", meta).state().gist_rows


def test_an_empty_memory_can_be_moved_too(tmp_path, kit):
    write_bundle(kit.store(kit.meta()), kit.meta(), tmp_path / "a.bundle")
    meta = load_memory(tmp_path / "a.bundle", into=tmp_path / "b.mc", **kit.target())
    assert 0 == kit.reopened(tmp_path / "b.mc", meta).state().n_tokens
    assert kit.meta().root.hex() == meta.parent["chain"]


def test_a_loaded_memory_opens_for_writing(tmp_path, kit, bundle):
    load_memory(bundle, into=tmp_path / "b.mc", **kit.target())
    opened = open_memory(
        tmp_path / "b.mc",
        backend="file",
        factory=kit.storage,
        fingerprints=kit.prints,
        vocab_size=kit.vocab_size,
    )
    opened.journal.append(np.arange(3, dtype=np.int32), [kit.record(3, "more")]).wait()
    opened.close()


# --- a directory ---------------------------------------------------------------------------------


def test_a_directory_is_read_without_its_model(tmp_path, kit, store, directory):
    target = kit.target(into=tmp_path / "b.mc", trust="keep", fingerprints=OTHER_BASE)
    meta = load_memory(directory, **target)
    loaded = kit.reopened(tmp_path / "b.mc", meta)
    before, after = kit.content(store), kit.content(loaded, upto=store.state().seq)
    assert {**before, "gists": {}} == after
    assert read_meta(directory).uuid == meta.parent["uuid"]


def test_reading_a_directory_changes_no_byte_of_it(tmp_path, kit, directory):
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    load_memory(directory, into=tmp_path / "b.mc", **kit.target())
    assert before == {path: path.read_bytes() for path in before}


def test_a_directory_that_is_open_for_writing_is_locked(tmp_path, kit, directory):
    opened = open_memory(
        directory,
        backend="file",
        factory=kit.storage,
        fingerprints=kit.prints,
        vocab_size=kit.vocab_size,
    )
    with pytest.raises(SessionLockedError):
        load_memory(directory, into=tmp_path / "b.mc", **kit.target())
    opened.close()
    assert not (tmp_path / "b.mc").exists()


def test_damage_far_behind_the_head_of_a_directory_is_found(tmp_path, kit):
    meta = kit.meta()
    commits = [[kit.record(2, f"text number {n}")] for n in range(100)]
    write_bundle(kit.history(meta, *commits), meta, tmp_path / "a.bundle")
    load_memory(tmp_path / "a.bundle", into=tmp_path / "a.mc", trust="keep", **kit.target())
    rows = tmp_path / "a.mc" / "data-000001" / "rows"
    rows.write_bytes(rows.read_bytes().replace(b"number 7\xa6", b"number 8\xa6"))
    with pytest.raises(CorruptError, match="commit 8") as caught:
        load_memory(tmp_path / "a.mc", into=tmp_path / "b.mc", **kit.target())
    assert 7 == caught.value.have_seq
    assert not (tmp_path / "b.mc").exists()


@pytest.mark.parametrize("make", ["nothing", "empty", "foreign"])
def test_a_source_that_is_none_is_not_found(tmp_path, kit, make):
    source = tmp_path / "source"
    if make != "nothing":
        source.mkdir()
    if make == "foreign":
        (source / "letter.txt").write_text("Dear all,")
    with pytest.raises(SessionNotFoundError):
        load_memory(source, into=tmp_path / "b.mc", **kit.target())
    assert not (tmp_path / "b.mc").exists()


# --- another tokenizer ---------------------------------------------------------------------------


def test_another_tokenizer_is_refused_and_told_what_to_do(tmp_path, kit, bundle):
    target = kit.target(into=tmp_path / "b.mc", fingerprints=OTHER_TOKENIZER)
    with pytest.raises(ModelMismatchError, match="retokenize=True") as caught:
        load_memory(bundle, **target)
    facts = ("tokenizer", "b" * 64, "c" * 64)
    assert facts == (caught.value.kind, caught.value.stored, caught.value.given)
    assert ["a.bundle"] == [entry.name for entry in tmp_path.iterdir()]


@pytest.fixture
def talk(kit):
    """Write a history in which every message has text."""
    reply = {"role": 1, "trust": 2}
    return kit.history(
        kit.meta(),
        [kit.record(5, "hello", ts_us=7), kit.record(3, "good ", ts_us=8, **reply)],
        [kit.record(0, role=4, body=b"\x80", trust=4)],
        [kit.record(4, "morning", flags=FLAG_CONTINUES, ts_us=9, **reply)],
        [kit.record(2, "rules", role=2, trust=4, ts_us=10)],
        [kit.record(6, role=3, flags=2, trust=1, body=b"", ts_us=11)],
    )


@pytest.mark.parametrize(("trust", "expected"), [("cap", [1, 1, 1, 1]), ("keep", [3, 2, 4, 1])])
def test_ids_are_made_anew_message_by_message(tmp_path, kit, talk, trust, expected):
    write_bundle(talk, kit.meta(), tmp_path / "a.bundle")
    target = kit.target(
        into=tmp_path / "b.mc",
        fingerprints=OTHER_TOKENIZER,
        retokenizer=RETOKENIZER,
        trust=trust,
        vocab_size=70_000,
    )
    meta = load_memory(tmp_path / "a.bundle", **target)
    loaded = kit.reopened(tmp_path / "b.mc", meta)
    rows = loaded.read_messages(0, 5)
    bodies = [decode_body(body) for body in loaded.read_bodies(np.arange(4))]
    ids = loaded.state().tail
    expected_ids = [
        *(1, 4, 4, *b"hello"),
        *(9, *b"good morning"),
        *(6, *b"rules"),
    ]
    assert expected_ids == np.frombuffer(ids, "<i4").tolist()
    assert ["hello", "good morning", "rules", None] == [body.text for body in bodies]
    assert [0, 1, 2, 3, 4] == rows["role"].tolist()
    assert expected == rows["trust"][:4].tolist()
    assert [7, 8, 10, 11] == rows["ts_us"][:4].tolist()
    assert [0, 0, 0, kit.forgotten, 0] == rows["flags"].tolist()
    assert {"n": 4} == bodies[1].metadata
    assert {"loaded_from"} == set(settings_of(loaded))
    assert kit.meta().root != meta.root
    assert 4 == meta.token_bytes


def test_many_messages_are_made_anew_in_bounded_groups(tmp_path, kit):
    meta = kit.meta()
    store = kit.history(meta, *([kit.record(2, f"message {n}")] for n in range(700)))
    write_bundle(store, meta, tmp_path / "a.bundle")
    seen = []
    target = kit.target(
        into=tmp_path / "b.mc",
        fingerprints=OTHER_TOKENIZER,
        retokenizer=RETOKENIZER,
        progress=lambda *pair: seen.append(pair),
    )
    loaded = kit.reopened(tmp_path / "b.mc", load_memory(tmp_path / "a.bundle", **target))
    assert (4, 701) == (loaded.state().seq, loaded.state().n_messages)
    assert (1_400, 1_400) == seen[-1]


def test_a_message_without_text_cannot_change_its_tokenizer(tmp_path, kit):
    meta = kit.meta()
    store = kit.history(meta, [kit.record(2, "text"), kit.record(2), kit.record(2, "text")])
    write_bundle(store, meta, tmp_path / "a.bundle")
    target = kit.target(fingerprints=OTHER_TOKENIZER, retokenizer=RETOKENIZER)
    with pytest.raises(ModelMismatchError, match="message 1 of") as caught:
        load_memory(tmp_path / "a.bundle", into=tmp_path / "b.mc", **target)
    assert 1 == caught.value.message_id
    assert ["a.bundle"] == [entry.name for entry in tmp_path.iterdir()]


def test_the_same_tokenizer_keeps_its_ids_even_if_they_could_be_made_anew(tmp_path, kit, bundle):
    target = kit.target(into=tmp_path / "b.mc", retokenizer=RETOKENIZER)
    meta = load_memory(bundle, **target)
    assert kit.meta().root == meta.root


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", ["", "CAP", None, 1, True, ["cap"]])
def test_an_unknown_word_for_trust_is_refused(tmp_path, kit, bundle, trust):
    with pytest.raises(ConfigError, match="cap") as caught:
        load_memory(bundle, into=tmp_path / "b.mc", trust=trust, **kit.target())
    assert "trust" == caught.value.field


@pytest.mark.parametrize("source", [None, 7, b"a.bundle", "s3://b/a.bundle", "", "a\0b"])
def test_a_source_that_is_no_path_is_refused(tmp_path, kit, source):
    with pytest.raises(ConfigError):
        load_memory(source, into=tmp_path / "b.mc", **kit.target())


def test_an_existing_target_is_refused(tmp_path, kit, bundle, directory):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError):
        load_memory(bundle, into=directory, **kit.target())
    assert before == sorted(tmp_path.rglob("*"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_load_leaves_nothing(tmp_path, kit, bundle, error):
    def stop(_done, _total):
        raise error

    with pytest.raises(error):
        load_memory(bundle, into=tmp_path / "b.mc", progress=stop, **kit.target())
    assert ["a.bundle"] == [entry.name for entry in tmp_path.iterdir()]


def test_a_bundle_that_changes_while_it_is_loaded_leaves_nothing(tmp_path, kit, bundle):
    class Slow(kit.storage):
        def open(self, mode, header):
            super().open(mode, header)  # after the check, before the copy
            raw = bundle.read_bytes()
            bundle.write_bytes(raw.replace(b"question 29", b"answered 29"))

    target = kit.target(into=tmp_path / "b.mc", factory=Slow, trust="keep")
    with pytest.raises(CorruptError, match="changed while it was loaded"):
        load_memory(bundle, **target)
    assert ["a.bundle"] == [entry.name for entry in tmp_path.iterdir()]


def test_progress_runs_to_the_last_token(tmp_path, kit, store, bundle):
    seen = []
    target = kit.target(progress=lambda *pair: seen.append(pair))
    load_memory(bundle, into=tmp_path / "b.mc", **target)
    assert (store.state().n_tokens,) * 2 == seen[-1]
