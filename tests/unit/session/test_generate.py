"""Replies on the plain loop: texts, streams, edge cases, events, determinism."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from megacontext_sdk import (
    AsyncMemorySession,
    Completed,
    FocusChanged,
    MemorySession,
    TextDelta,
    errors,
)
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.builtin.sinks import InMemorySink
from megacontext_sdk.contracts.focus import FocusPolicy, Reveal
from megacontext_sdk.contracts.model import RowBatch
from megacontext_sdk.memory.lod import Span

MODEL = EchoModel()


def open_session(**settings) -> MemorySession:
    arguments = {"model": MODEL, "storage": "memory", "strict": True, "w_max": 512} | settings
    return MemorySession.open(None, **arguments)


@pytest.fixture
def session():
    with open_session() as opened:
        yield opened


def fill(session: MemorySession, n_messages: int = 60) -> None:
    for number in range(n_messages):
        session.append(f"Day {number}: rain on the hills, and the sheep stayed in the valley.")


def ids_of(session: MemorySession, span: Span | None = None):
    return session._parts.tree.token_ids(span or Span(0, session.stats().n_tokens))


def plain_greedy(prompt_ids, n: int) -> list[int]:
    """Greedy decoding of the bare model, no paging: the oracle of row 60."""
    ids = prompt_ids.astype(np.int32)
    out: list[int] = []
    none = np.zeros((0, MODEL.info.hidden_size), np.float32)
    for _ in range(n):
        window = MODEL.open_window(len(ids))
        at = np.arange(len(ids))
        logits = window.write(RowBatch(ids, none), at, at, "last").numpy()
        out.append(int(logits.argmax()))
        if out[-1] in MODEL.info.eos_ids:
            break
        ids = np.append(ids, np.int32(out[-1]))
    return out


def test_row60_greedy_tokens_are_the_models_own_while_everything_fits(session) -> None:
    session.append("The cat sleeps on the mat.")
    reply = session.generate("What does the cat do?", max_new_tokens=70)

    message = session.messages()[-1]
    ids = ids_of(session)
    header = len(session._parts.scribe.chat.reply_header_ids())
    start = message.span.start + header
    expected = plain_greedy(ids[:start], 70)
    assert expected[: reply.usage.generated_tokens] == ids[start : start + len(expected)].tolist()
    assert reply.text == message.text


def test_a_reply_is_a_message_with_usage_and_reason(session) -> None:
    reply = session.generate("Hello?", max_new_tokens=40)

    assert "assistant" == session.messages()[-1].role
    assert reply.message_id == session.messages()[-1].message_id
    assert reply.text == session.messages()[-1].text == str(reply)
    assert 0 < reply.usage.generated_tokens <= 40
    assert reply.finish_reason in {"stop", "length"}
    assert json.dumps(reply.to_dict())


def test_streamed_text_is_the_reply(session) -> None:
    items = list(session.stream("Hello?", max_new_tokens=50))

    assert isinstance(items[0], FocusChanged)
    assert isinstance(items[-1], Completed)
    text = "".join(item.text for item in items if isinstance(item, TextDelta))
    assert items[-1].reply.text == text


def test_row75_an_empty_session_generates_from_its_opening(session) -> None:
    reply = session.generate(max_new_tokens=10)

    assert 0 < reply.usage.generated_tokens
    assert MODEL.tokenizer.bos_id == ids_of(session)[0]


def test_row75_a_prompt_longer_than_the_budget_is_taken_in_and_compressed(session) -> None:
    prompt = "".join(f"Line {n} of a long report about weather. " for n in range(150))
    reply = session.generate(prompt, max_new_tokens=20)

    assert prompt == session.messages()[0].text
    assert reply.focus.n_tokens > 10 * 512
    assert reply.focus.cost <= 512
    assert reply.focus.entries[0].span.start == 0
    assert reply.focus.entries[-1].span.end == reply.focus.n_tokens


def test_row75_generation_over_many_blocks_seals_each_and_stays_in_budget() -> None:
    sink = InMemorySink()
    with open_session(sinks=(sink,)) as session:
        fill(session)
        reply = session.generate("Go on.", max_new_tokens=200)
        stats = session.stats()
        assert stats.rows <= 512
        assert stats.window_rows <= 512
        assert stats.nodes[1] == stats.n_tokens // 32
        rows = [event.rows_live for event in sink.events if hasattr(event, "rows_live")]
        assert max(rows) <= 512
        if reply.usage.generated_tokens > 64:
            blocks = [e for e in sink.events if getattr(e, "trigger", "") == "block"]
            assert len(blocks) >= reply.usage.generated_tokens // 32 - 1


def test_row75_an_end_inside_a_block_leaves_a_tail_that_continues(session) -> None:
    session.generate("One?", max_new_tokens=5)
    tail = session.stats().tail_tokens
    n_tokens = session.stats().n_tokens

    session.append("Two.")

    assert n_tokens % 32 == tail
    assert session.stats().n_tokens > n_tokens
    session._parts.state.wc.check()


def test_row75_closing_a_stream_keeps_what_was_shown(session) -> None:
    stream = session.stream("Tell me.", max_new_tokens=100)
    shown = ""
    for item in stream:
        if isinstance(item, TextDelta):
            shown += item.text
        if len(shown) > 12:
            break
    stream.close()

    assert shown == session.messages()[-1].text
    assert session.generate("And now?", max_new_tokens=5).text is not None


def test_row75_an_append_during_a_stream_ends_it_and_keeps_what_was_shown(session) -> None:
    stream = session.stream("Tell me.", max_new_tokens=100)
    shown = ""
    while len(shown) < 5:
        item = next(stream)
        shown += item.text if isinstance(item, TextDelta) else ""

    session.append("Stop that.")

    assert [] == list(stream)
    assert [shown, "Stop that."] == [message.text for message in session.messages()[-2:]]


def test_row75_an_interrupt_in_a_stream_leaves_a_usable_session(session) -> None:
    def consume() -> None:
        for item in session.stream("Tell me.", max_new_tokens=100):
            if isinstance(item, TextDelta):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    import gc

    gc.collect()
    assert session.generate("And now?", max_new_tokens=5).message_id is not None
    session._parts.state.wc.check()


def test_row75_a_stop_string_is_removed_and_not_committed(session) -> None:
    whole = session.generate("Tell me.", max_new_tokens=60, remember=False).text
    stop = whole[20:23]
    cut = whole.index(stop)

    reply = session.generate("Tell me.", max_new_tokens=60, stop=stop)

    assert ("stop", whole[:cut]) == (reply.finish_reason, reply.text)
    assert whole[:cut] == session.messages()[-1].text
    assert stop not in session.read(session.messages()[-1].span)


def test_row75_a_shown_prefix_of_a_stop_string_may_span_a_block_boundary() -> None:
    with open_session() as probe:
        whole = probe.generate("Tell me.", max_new_tokens=120, remember=False).text
    for start in range(10, min(70, len(whole) - 8), 6):
        stop = whole[start : start + 8]
        with open_session() as session:
            reply = session.generate("Tell me.", max_new_tokens=120, stop=stop)
            assert whole[: whole.index(stop)] == reply.text == session.messages()[-1].text
            session._parts.state.wc.check()
            # The next turn reads the memory, not rows of text that was taken back.
            after = session.generate("And?", max_new_tokens=8)
            prompt_end = session.messages()[-1].span.start + len(
                session._parts.scribe.chat.reply_header_ids()
            )
            expected = plain_greedy(ids_of(session)[:prompt_end], 8)
            got = ids_of(session)[prompt_end : prompt_end + after.usage.generated_tokens]
            assert expected == got.tolist()


def test_row75_nothing_of_an_unremembered_reply_stays(session) -> None:
    fill(session, 10)
    before = (session.stats().n_tokens, session.stats().n_messages, session[:])

    reply = session.generate("A secret?", max_new_tokens=40, remember=False)

    assert reply.message_id is None
    assert before == (session.stats().n_tokens, session.stats().n_messages, session[:])
    assert session._parts.state.pager.n_live == session.stats().rows


def test_an_unremembered_reply_that_cannot_fit_is_refused(session) -> None:
    fill(session, 30)

    with pytest.raises(errors.BudgetError, match="max_new_tokens"):
        session.generate("Hi?", max_new_tokens=900, remember=False)
    assert session.generate("Hi?", max_new_tokens=5).text is not None


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": "x"}, "seed"),
        ({"stop": ""}, "stop"),
        ({"messages": [{"role": "user", "content": "b"}]}, "messages"),
    ],
)
def test_a_bad_argument_of_generate_is_refused_and_changes_nothing(
    session, arguments, field
) -> None:
    before = session.stats().n_tokens

    with pytest.raises(errors.ConfigError) as caught:
        session.generate("a", **arguments)

    assert field == caught.value.field
    assert before == session.stats().n_tokens


def test_messages_are_answered_like_a_prompt(session) -> None:
    reply = session.generate(
        messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi."}],
        max_new_tokens=5,
    )

    assert ["system", "user", "assistant"] == [m.role for m in session.messages()]
    assert reply.usage.prompt_tokens > 0


def test_row74_events_come_in_the_order_of_the_loop() -> None:
    sink = InMemorySink()
    with open_session(sinks=(sink,)) as session:
        fill(session, 8)
        n_before = len(sink.events)
        session.generate("Go on.", max_new_tokens=120)
        kinds = [type(event).__name__.removesuffix("Event") for event in sink.events[n_before:]]
    assert ["Ingest", "Gist", "Assemble", "Refocus", "Swap", "Decode"] == kinds[:6]
    first_block = kinds.index("Decode")
    block = kinds[first_block + 1 : first_block + 7]
    assert ["Ingest", "Gist", "Assemble", "Refocus", "Swap", "Decode"] == block
    new = sink.events[n_before:]
    blocks = [event for event in new if getattr(event, "trigger", "") == "block"]
    turns = [event for event in new if getattr(event, "trigger", "") == "turn"]
    sealed = [event for event in new if type(event).__name__ == "AssembleEvent"]
    assert 1 == len(turns)
    assert len(blocks) == len(sealed) - 2  # the prompt and the end of the reply seal no block here


def test_row76_two_runs_give_the_same_bytes_plans_and_tokens() -> None:
    def run() -> tuple[object, ...]:
        with open_session() as session:
            fill(session, 40)
            reply = session.generate("Go on.", max_new_tokens=60, temperature=0.8, seed=5)
            return (
                reply.text,
                ids_of(session).tolist(),
                session._parts.tree.gists(1, np.arange(session.stats().nodes[1])).tobytes(),
                [(a.kind, a.node, a.score) for a in session.focus.history()],
            )

    assert run() == run()


class FailingPolicy(FocusPolicy):
    """Fails in one of the ways a plugin may fail."""

    name = "failing"

    def __init__(self, how: str) -> None:
        self.how = how

    def score(self, view):
        n = len(view.entries)
        if self.how == "raises":
            raise ZeroDivisionError
        if self.how == "nan":
            return np.full(n, np.nan, dtype=np.float32)
        return np.zeros(n + 1 if self.how == "length" else n, dtype=np.float32)

    def reveals(self, view, limit):
        return [Reveal(10**9, 0.9)] if self.how == "beyond" else []


@pytest.mark.parametrize("how", ["raises", "nan", "length"])
def test_row75_a_failing_policy_costs_its_own_opinion_only(how) -> None:
    sink = InMemorySink()
    with open_session(focus=FailingPolicy(how), sinks=(sink,)) as session:
        fill(session)
        reply = session.generate("Go on.", max_new_tokens=10)
        assert reply.usage.generated_tokens > 0
    fallbacks = [e for e in sink.events if type(e).__name__ == "FallbackEvent"]
    assert ("focus", "failing", "recency") == (
        fallbacks[0].role,
        fallbacks[0].wanted,
        fallbacks[0].used,
    )


def test_row75_all_zero_scores_only_make_room() -> None:
    with open_session(focus=FailingPolicy("zero")) as session:
        fill(session)
        session.generate("Go on.", max_new_tokens=10)
        assert () == session.focus.history()
        assert session.stats().rows <= 512


def test_a_pin_stays_in_full_and_is_listed(session) -> None:
    receipt = session.append("Allergic to peanuts.")
    session.focus.pin(receipt.span)
    fill(session)

    report = session.generate("Go on.", max_new_tokens=10).focus

    pinned = [entry for entry in report.entries if entry.pinned]
    assert pinned
    assert {0} == {entry.lod for entry in pinned}
    session.focus.unpin(receipt.span)
    assert not [entry for entry in session.focus.report().entries if entry.pinned]


def test_pins_beyond_their_share_are_refused(session) -> None:
    fill(session)

    with pytest.raises(errors.BudgetError, match="pin"):
        session.focus.pin((0, 1000))


def test_a_user_may_expand_and_collapse(session) -> None:
    fill(session)
    gist = next(entry for entry in session.focus.report().entries if entry.lod == 1)

    shown = session.focus.expand(gist.span)
    assert 0 in {e.lod for e in shown.entries if e.span.start == gist.span.start}
    hidden = session.focus.collapse(gist.span)

    assert 0 not in {e.lod for e in hidden.entries if e.span.start == gist.span.start}


def test_a_report_for_a_query_scores_without_changing_anything(session) -> None:
    session.append("The red key opens the cellar.")
    fill(session)
    epoch = session.focus.report().epoch

    report = session.focus.report("Which key opens the cellar?")

    assert epoch == report.epoch == session.focus.report().epoch
    assert all(entry.score is not None for entry in report.entries)


def test_a_question_reveals_and_cites_what_shares_its_rare_words(session) -> None:
    session.append("The quick brown fox.")
    fill(session, 20)
    told = session.append("Zanzibar exports cloves.")
    fill(session, 80)

    reply = session.generate("What does Zanzibar export?", max_new_tokens=4)

    cited = [c for c in reply.citations if c.span.overlaps(told.span)]
    assert cited
    assert set(told.message_ids) <= set(cited[0].message_ids)
    shown = [e for e in reply.focus.entries if e.span.overlaps(told.span)]
    assert {0} == {entry.lod for entry in shown}


def test_audit_is_zero_in_exact_mode_and_small_otherwise() -> None:
    for mode, limit in (("exact", 1e-5), ("seam", 2.0)):
        with open_session(kv_mode=mode) as session:
            fill(session)
            session.generate("Zanzibar?", max_new_tokens=70)
            audit = session.audit()
            assert audit.kl_mean_nats <= limit
            assert audit.n_rows > 0


def test_the_async_session_appends_generates_and_streams() -> None:
    async def run() -> tuple[str, str, str]:
        async with await AsyncMemorySession.open(
            None, model=MODEL, storage="memory", w_max=512
        ) as session:
            receipt = await session.append("The cat sleeps.")
            assert 1 == len(receipt.message_ids)
            reply = await session.generate("And?", max_new_tokens=20)
            streamed, completed = "", ""
            async for item in session.stream("More?", max_new_tokens=20):
                if isinstance(item, TextDelta):
                    streamed += item.text
                if isinstance(item, Completed):
                    completed = item.reply.text
            async for item in session.stream("More?", max_new_tokens=200):
                if isinstance(item, TextDelta):
                    break
            assert (await session.stats()).n_tokens > 0
            assert await session.search("cat")
            return reply.text, streamed, completed

    reply, streamed, completed = asyncio.run(run())
    assert streamed == completed
    assert isinstance(reply, str)


def test_the_async_session_closes_twice_and_reports_failures() -> None:
    async def run() -> None:
        session = await AsyncMemorySession.open(None, model=MODEL, storage="memory")
        with pytest.raises(errors.ConfigError):
            await session.append("")
        await session.close()
        await session.close()
        with pytest.raises(errors.UnknownProviderError):
            await AsyncMemorySession.open(None, model="nobody", storage="memory")

    asyncio.run(run())
