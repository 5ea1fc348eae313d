"""A forget at the memory: content gone from every row and byte, everything else where it was."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.contracts.gist import GistEncoder
from megacontext_sdk.errors import ConfigError, ModelError, ReadOnlyError, SessionClosedError
from megacontext_sdk.memory.chain import encode_ids
from megacontext_sdk.memory.directory.probe import Prober
from megacontext_sdk.memory.forget.forgetting import finish_forget
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.messages import decode_body, load_messages
from megacontext_sdk.testing.gist import blocks_of

N_MARKERS = 50


def marker(number):
    return f"Marker {number * 7919:08d} of the secret garden, told only once: {number**5:015d}."


def plant(memory, n=N_MARKERS, others=4):
    """Append markers between other messages; return their message numbers."""
    planted = []
    for number in range(n):
        fillers = [f"Ordinary message {number}.{i}, about nothing in {i}." for i in range(others)]
        memory.append(*fillers)
        planted.append(memory.append(marker(number)))
    return planted


def pieces(memory, numbers):
    """Return bytes that stand for planted messages on the disk: text, ids, gist rows."""
    rows = memory.journal.messages(0, memory.journal.n_messages)[numbers]
    texts = [decode_body(body).text.encode() for body in memory.journal.bodies(np.array(numbers))]
    spans = [Span(int(row["start"]), int(row["start"]) + int(row["n_tokens"])) for row in rows]
    runs = []
    for span in spans:
        at = -(-span.start // 8) * 8  # eight ids that lie in one block
        runs.append(encode_ids(memory.journal.token_ids(Span(at, at + 8)), 2))
    gists = memory.gists()
    touched = [node for span in spans for node in span.blocks() if node < len(gists[1])]
    return texts, runs, [gists[1][node].tobytes()[8:40] for node in touched]


# --- T14 ---------------------------------------------------------------------------------------


def test_row14_fifty_markers_are_found_before_and_nowhere_after(durable, bytes_below):
    planted = plant(durable)
    durable.tree.flush()
    before = pieces(durable, planted)
    durable.close()
    raw = bytes_below(durable.path)
    for kind in before:
        n_found = sum(piece in raw for piece in kind)
        assert n_found >= 0.99 * len(kind), "or a clean scan proves nothing"
    durable.reopen()
    receipt = durable.forget(message_ids=planted)
    assert (True, 0, ()) == (receipt.verified, receipt.hits, receipt.echoes)
    assert (N_MARKERS, 40 * N_MARKERS) == (len(receipt.messages), receipt.tokens)
    assert receipt.needles > 4 * N_MARKERS
    durable.close()
    raw = bytes_below(durable.path)
    assert 0 == sum(piece in raw for kind in before for piece in kind)
    assert b"Marker" not in raw


def test_row14_markers_are_out_of_every_row_the_store_can_give(memory):
    planted = plant(memory)
    whole, text = memory.ids(), [marker(number) for number in range(N_MARKERS)]
    texts, runs, gists = pieces(memory, planted)
    receipt = memory.forget(message_ids=planted)
    assert receipt.verified
    store = memory.opened.storage
    bodies = b"".join(store.read_bodies(np.arange(store.state().n_messages)))
    ids = store.read_blocks(np.arange(store.state().n_blocks)).tobytes() + store.state().tail
    rows = b"".join(level.tobytes() for level in memory.gists().values())
    assert [] == [one for one in text if one.encode() in bodies]
    assert [] == [one for one in texts if one in bodies]
    assert [] == [one for one in runs if one in ids]
    assert [] == [one for one in gists if one in rows]
    after = memory.ids()
    gone = np.zeros(len(whole), np.bool_)
    for span in receipt.spans:
        gone[span.start : span.end] = True
    assert (after[gone] == -1).all()
    assert (after[~gone] == whole[~gone]).all()


def test_ancestors_are_what_the_encoder_makes_of_what_is_left(memory, make_memory):
    memory.append("A long beginning.", n_tokens=32 * 32 * 3)
    planted = [memory.append(marker(at), n_tokens=100) for at in range(8)]
    memory.append("A long ending.", n_tokens=32 * 32 * 2 + 5)
    before = memory.gists()
    receipt = memory.forget(message_ids=planted)
    after = memory.gists()
    fresh = make_memory("memory")
    ids = np.where(memory.ids() < 0, 7, memory.ids())  # 7 is the filler of these trees
    from_scratch = MeanGistEncoder(1)
    blocks = ids[: len(ids) // 32 * 32].reshape(-1, 32)
    gists = from_scratch.encode_blocks(blocks_of(blocks, 0, len(blocks), 0), fresh.tree._services)
    codec = fresh.tree.gist_store.codec
    expected = codec.encode(gists)
    assert (expected == after[1]).all()
    for lod in (2, 3):
        below = codec.decode(after[lod - 1][: len(after[lod - 1]) // 32 * 32])
        if len(below.rows):
            expected = codec.encode(from_scratch.encode_gists(lod, below, fresh.tree._services))
            assert (expected == after[lod]).all()
    touched = {node for span in receipt.spans for node in span.blocks()}
    changed = {node for node in range(len(after[1])) if (after[1][node] != before[1][node]).any()}
    assert touched == changed, "only ancestors of forgotten tokens are made again"
    assert receipt.gists_dropped == receipt.gists_rebuilt
    assert len(touched) + len({node // 32 for node in touched}) == receipt.gists_dropped


def test_indices_numbers_and_rows_stay_and_the_chain_holds(memory):
    plant(memory, 5)
    journal = memory.journal
    rows = journal.messages(0, journal.n_messages)
    facts = journal.seq, journal.n_tokens, journal.n_messages
    memory.forget(message_ids=[5, 10])
    journal = memory.journal
    assert (facts[0] + 1, facts[1], facts[2] + 1) == (
        journal.seq,
        journal.n_tokens,
        journal.n_messages,
    ), "one settings record more, and nothing else"
    after = journal.messages(0, facts[2])
    for field in ("start", "ts_us", "n_tokens", "role", "trust"):
        assert (rows[field] == after[field]).all()
    flagged = np.flatnonzero(after["flags"] & 2)
    assert [5, 10] == flagged.tolist()
    memory.journal.flush()
    prober = Prober(
        storage=memory.opened.storage,
        root=memory.opened.meta.root,
        token_bytes=2,
        path="a.mc",
    )
    assert journal.seq == prober.check().seq


def test_a_forget_is_noted_in_the_settings_without_content(here):
    planted = plant(here, 3)
    receipt = here.forget(message_ids=planted)
    (noted,) = here.journal.settings["receipts"]
    assert {
        "seq": receipt.seq,
        "ts_us": 1_000,
        "uuid": here.opened.meta.uuid,
        "generation": 2,
        "spans": [[span.start, span.end] for span in receipt.spans],
        "n_spans": 3,
        "messages": 3,
        "tokens": 120,
        "gists_dropped": receipt.gists_dropped,
    } == noted
    text = repr(receipt) + repr(receipt.to_dict()) + repr(noted)
    assert "garden" not in text


def test_the_newest_receipts_are_kept(make_memory, monkeypatch):
    monkeypatch.setattr("megacontext_sdk.memory.forget.forgetting._RECEIPTS_KEPT", 3)
    memory = make_memory()
    done = [memory.forget(message_ids=[memory.append(f"Number {at}.")]).seq for at in range(5)]
    assert done[-3:] == [noted["seq"] for noted in memory.journal.settings["receipts"]]


# --- scopes and edges --------------------------------------------------------------------------


def test_a_dry_run_changes_nothing_and_says_what_would_go(durable, bytes_below):
    planted = plant(durable, 5)
    durable.tree.flush()
    seq, generation = durable.journal.seq, durable.opened.meta.generation
    dry = durable.forget(message_ids=planted, dry_run=True)
    assert (None, None, True) == (dry.seq, dry.verified, dry.dry_run)
    assert (seq, generation) == (durable.journal.seq, durable.opened.meta.generation)
    done = durable.forget(message_ids=planted)
    for fact in ("spans", "messages", "tokens", "gists_dropped"):
        assert getattr(dry, fact) == getattr(done, fact)


def test_forgetting_twice_changes_nothing_the_second_time(here):
    planted = plant(here, 5)
    here.forget(message_ids=planted)
    opened, seq = here.opened, here.journal.seq
    again = here.forget(message_ids=planted)
    assert (opened, seq) == (here.opened, here.journal.seq)
    assert ((), (), 0, True, None) == (
        again.spans,
        again.messages,
        again.tokens,
        again.verified,
        again.seq,
    )


def test_everything_can_be_forgotten_and_the_memory_goes_on(memory):
    plant(memory, 5)
    n_tokens = memory.journal.n_tokens
    receipt = memory.forget(everything=True)
    assert ((Span(0, n_tokens),), True) == (receipt.spans, receipt.verified)
    assert (memory.ids() == -1).all()
    first = memory.append("A new beginning.")
    assert Span(n_tokens, n_tokens + 40).start == memory.journal.messages(first, first + 1)["start"]
    assert (memory.ids()[n_tokens:] >= 0).all()
    assert memory.tree.gists(1, np.arange(memory.tree.n_nodes(1))).shape[0] == memory.tree.n_blocks


@pytest.mark.parametrize("n_tail", [1, 20, 31])
def test_the_tail_can_be_forgotten_and_is_completed_afterwards(memory, n_tail):
    memory.append("Full blocks.", n_tokens=64)
    number = memory.append("The tail.", n_tokens=n_tail)
    memory.forget(message_ids=[number])
    assert [-1] * n_tail == memory.journal.tail.tolist()
    memory.append("What follows.", n_tokens=40)
    ids = memory.ids()
    assert (ids[64 : 64 + n_tail] == -1).all()
    assert (ids[64 + n_tail :] >= 0).all()
    if memory.path is not None:
        memory.reopen()
        assert ids.tolist() == memory.ids().tolist()


@pytest.mark.parametrize("edges", [(31, 33), (32, 64), (1, 95), (0, 1), (1023, 1025), (2047, 2048)])
def test_a_span_across_block_edges_takes_its_tokens_and_no_others(here, edges):
    here.append(*(f"Message {at}, which says something." for at in range(64)), n_tokens=33)
    before = here.ids()
    receipt = here.forget(span=edges)
    after = here.ids()
    changed = np.flatnonzero(before != after)
    assert list(range(*edges)) == changed.tolist()
    assert (True, edges[1] - edges[0]) == (receipt.verified, receipt.tokens)


def test_what_is_left_of_a_message_is_the_text_of_its_tokens(here):
    here.append("A text that would give the rest away.", source="mail", metadata={"k": 1})
    here.forget(span=(0, 10))
    (found,) = load_messages(here.journal, 0, 2, lambda span: f"<{span.start}-{span.end}>")
    assert ("<0-40>", True, None, {}) == (
        found.text,
        found.is_forgotten,
        found.source,
        found.metadata,
    )


def test_row24_a_repeated_append_of_forgotten_content_is_refused_and_says_why(here):
    key = b"k" * 16
    number = here.append("Once.", key=key)
    here.forget(message_ids=[number])
    with pytest.raises(ConfigError, match="forgotten") as caught:
        here.append("Once.", key=key)
    assert "idempotency_key" == caught.value.field
    assert "Once" not in str(caught.value)
    here.append("Once.", key=b"n" * 16)


def test_a_quotation_elsewhere_is_an_echo_and_is_named(memory):
    number = memory.append(marker(3))
    memory.append("Something else entirely, and long enough to be of no interest.")
    quoting = memory.append("She wrote to me: " + marker(3) + " I did not believe it.")
    receipt = memory.forget(message_ids=[number])
    assert ((quoting,), 0, True) == (receipt.echoes, receipt.hits, receipt.verified)


def test_messages_too_short_to_search_for_are_counted(here):
    numbers = [here.append("Yes."), here.append(marker(1)), here.append(None, n_tokens=5)]
    numbers.append(here.append(None, n_tokens=200))
    assert 2 == here.forget(message_ids=numbers).unscannable


# --- what else lies in the directory -----------------------------------------------------------


def test_caches_rescued_generations_and_the_old_one_are_deleted(durable, bytes_below):
    planted = plant(durable, 3)
    durable.tree.flush()
    rescued = durable.path / "rescue" / "data-000000"
    rescued.mkdir(parents=True)
    (rescued / "old").write_bytes(marker(1).encode())
    (durable.path / "cache" / "lexical.sqlite").write_bytes(marker(2).encode())
    receipt = durable.forget(message_ids=planted)
    names = sorted(path.name for path in durable.path.iterdir())
    assert "rescue" not in names
    assert ["data-000002"] == [name for name in names if name.startswith("data-")]
    assert [] == list((durable.path / "cache").iterdir())
    assert receipt.files_removed >= 3
    assert b"garden" not in bytes_below(durable.path)


def test_a_file_that_keeps_content_makes_the_receipt_say_so(durable):
    planted = plant(durable, 3)
    (durable.path / "notes.txt").write_text(marker(1))
    receipt = durable.forget(message_ids=planted)
    assert (False, True) == (receipt.verified, receipt.hits > 0)


def test_every_byte_of_every_file_is_read(durable):
    planted = plant(durable, 3)
    (durable.path / "notes.txt").write_bytes(bytes(1_000_003))
    receipt = durable.forget(message_ids=planted)
    assert receipt.bytes_scanned > 1_000_003


def test_a_forget_that_was_cut_short_is_finished_at_the_next_open(durable):
    durable.forget(message_ids=plant(durable, 2))
    for number in (1, 2):
        (durable.path / "rescue" / f"data-00000{number}").mkdir(parents=True)
    finish_forget(durable.opened)
    kept = [path.name for path in (durable.path / "rescue").iterdir()]
    assert ["data-000002"] == kept, "what was rescued after the forget stays"


def test_snapshots_do_not_keep_text_alive(durable, bytes_below):
    planted = plant(durable, 3)
    place = {"seq": durable.journal.seq, "n_tokens": durable.journal.n_tokens}
    durable.journal.update_settings({"snapshots": {"before": place}}).wait()
    durable.forget(message_ids=planted)
    assert {"before": place} == durable.journal.settings["snapshots"]
    commits = durable.opened.storage.read_commits(place["seq"], place["seq"] + 1)
    assert place["n_tokens"] == int(commits["start"][0] + commits["n_tokens"][0])
    assert b"garden" not in bytes_below(durable.path)


# --- when something fails ----------------------------------------------------------------------


class FailingEncoder(GistEncoder):
    """Passes on to `mean` until it is told to fail."""

    name = "mean"
    gist_slots = 1
    aux_size = 1

    def __init__(self):
        self.inner = MeanGistEncoder(1)
        self.fails = False

    def fingerprint(self, info):
        return self.inner.fingerprint(info)

    def encode_blocks(self, blocks, services):
        assert blocks.token_ids.min() >= 0, "an encoder never sees a forgotten token"
        if self.fails:
            raise RuntimeError("no")
        return self.inner.encode_blocks(blocks, services)

    def encode_gists(self, lod, children, services):
        return self.inner.encode_gists(lod, children, services)


def test_an_encoder_that_fails_leaves_gists_missing_and_forgets_all_the_same(here):
    here.append("A long beginning.", n_tokens=32 * 40)
    planted = [here.append(marker(at), n_tokens=100) for at in range(8)]
    here.append("A long ending.", n_tokens=32 * 40)
    encoder = FailingEncoder()
    here.tree._gists.maker.encoder = encoder
    encoder.fails = True
    receipt = here.forget(message_ids=planted)
    assert (True, 0) == (receipt.verified, receipt.gists_rebuilt)
    assert here.tree.stats().n_missing_gists == 0, "made again by the next tree"
    after = here.gists()
    assert here.tree.n_nodes(1) == len(after[1])
    here.tree._gists.cache.clear()
    assert np.isfinite(here.tree.gists(1, np.arange(here.tree.n_nodes(1)))).all()


def test_a_failure_before_the_switch_changes_nothing(memory, monkeypatch):
    planted = plant(memory, 3)
    seq, opened = memory.journal.seq, memory.opened

    def broken(*_arguments):
        raise ModelError("no", encoder="mean", lod=1)

    monkeypatch.setattr("megacontext_sdk.memory.forget.forgetting.GistRemake.fill", broken)
    with pytest.raises(ModelError):
        memory.forget(message_ids=planted)
    assert (seq, opened) == (memory.journal.seq, memory.opened)
    assert marker(0) == decode_body(memory.journal.bodies(np.array(planted[:1]))[0]).text
    memory.append("The handle goes on.")
    if memory.path is not None:
        assert ["data-000001"] == [path.name for path in memory.path.glob("data-*")]


def test_the_handle_before_the_forget_is_closed(here):
    planted = plant(here, 2)
    before = here.journal
    here.forget(message_ids=planted)
    with pytest.raises(SessionClosedError):
        before.token_ids(Span(0, 1))


def test_a_memory_opened_for_reading_only_plans(durable):
    planted = plant(durable, 2)
    durable.close()
    durable.opened = durable.open_handle(durable.path, read_only=True, create=False)
    assert 2 == len(durable.forget(message_ids=planted, dry_run=True).messages)
    with pytest.raises(ReadOnlyError):
        durable.forget(message_ids=planted)


@pytest.mark.parametrize("cascade", ["all", "", True, {}, ["forks"], np.array(["forks"])], ids=repr)
def test_an_unknown_cascade_is_refused(here, cascade):
    with pytest.raises(ConfigError) as caught:
        here.forget(everything=True, cascade=cascade)
    assert "cascade" == caught.value.field


def test_a_receipt_is_plain_json(here):
    planted = plant(here, 2)
    receipt = here.forget(message_ids=planted)
    assert {field.name for field in attrs.fields(type(receipt))} <= set(receipt.to_dict())
