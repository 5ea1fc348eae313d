"""One test per row of the edge-case table (spec section 11) that no other file walks to the end."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from megacontext_sdk import TextDelta
from megacontext_sdk.builtin.echo import EchoModel
from megacontext_sdk.builtin.sinks import InMemorySink
from megacontext_sdk.contracts.focus import FocusPolicy, Reveal
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.memory.lod import Span


def window_holds_the_layout(session):
    """After a sync the live rows are those of the layout, and none is left over."""
    state = session._parts.state
    session.audit(1)
    assert state.wc.cost == state.pager.n_live == state.pager.window.n_live
    state.wc.check()


@pytest.mark.parametrize("nothing", [[], (), np.zeros(0, np.int32), np.zeros(0, np.int64)])
@pytest.mark.parametrize("n_before", [0, 1, 40])
def test_row75_a_zero_length_append_is_a_result_and_no_change(sessions, nothing, n_before):
    with sessions.open() as session:
        sessions.fill(session, n_before)
        before = session.stats()
        receipt = session.append(nothing)
        after = session.stats()
        cursor = before.n_tokens
        assert (Span(cursor, cursor), ()) == (receipt.span, receipt.message_ids)
        assert not receipt.duplicate
        assert (before.seq, before.n_tokens, before.epoch) == (
            after.seq,
            after.n_tokens,
            after.epoch,
        )
        window_holds_the_layout(session)
        assert session.generate(max_new_tokens=3).usage.generated_tokens == 3


def test_row75_an_empty_session_has_a_valid_empty_context_and_speaks_after_a_system_prompt(
    sessions,
):
    with sessions.open() as session:
        report = session.focus.report()
        assert ((), 0, 0) == (report.entries, report.n_tokens, report.cost)
        assert () == session.focus.history()
        assert [] == session.search("anything")
        assert 0.0 == session.audit().kl_mean_nats
        session.append("Be kind.", role="system")
        assert 3 == session.generate(max_new_tokens=3).usage.generated_tokens
        assert ["system", "assistant"] == [message.role for message in session.messages()]


def test_row75_a_prompt_shorter_than_a_block_is_the_tail_alone(sessions):
    with sessions.open() as session:
        stream = session.stream("Hi?", max_new_tokens=3)
        focus = next(stream).focus
        assert [(0, focus.n_tokens)] == [(e.lod, e.cost) for e in focus.entries]
        assert focus.n_tokens < 32
        stream.close()
        assert {} == dict(session._parts.tree.encode_calls)


@pytest.mark.parametrize("n_shown", [1, 7, 30, 45])
def test_row75_cancelling_keeps_what_was_shown_and_releases_every_other_slot(sessions, n_shown):
    with sessions.open() as session:
        sessions.fill(session, 40)
        stream = session.stream("Tell me.", max_new_tokens=100)
        shown = ""
        while len(shown) < n_shown:
            item = next(stream)
            shown += item.text if isinstance(item, TextDelta) else ""
        stream.close()
        assert shown == session.messages()[-1].text
        window_holds_the_layout(session)
        n_footer = len(session._parts.scribe.chat.reply_footer_ids())
        assert session.messages()[-1].span.end == session.stats().n_tokens
        assert n_footer < 32


class Ends(EchoModel):
    """Ends a reply at a token of choice."""

    eos = ()

    @property
    def info(self):
        return attrs.evolve(super().info, eos_ids=self.eos)


@pytest.mark.parametrize("n", [1, 20, 40])
def test_row75_an_end_token_inside_a_block_leaves_a_partial_tail_that_goes_on(sessions, n):
    with sessions.open() as session:
        sessions.fill(session, 20)
        session.generate("Tell me.", max_new_tokens=60)
        message = session.messages()[-1]
        header = len(session._parts.scribe.chat.reply_header_ids())
        ids = session._parts.tree.token_ids(message.span)[header : header + 60].tolist()
    model = Ends()
    model.eos = (ids[n],)
    first = ids.index(ids[n])
    with sessions.open(model=model) as session:
        sessions.fill(session, 20)
        reply = session.generate("Tell me.", max_new_tokens=60)
        assert ("stop", first + 1) == (reply.finish_reason, reply.usage.generated_tokens)
        span = session.messages()[-1].span
        stored = session._parts.tree.token_ids(span)[header : header + first].tolist()
        assert ids[:first] == stored
        n_tokens = session.stats().n_tokens
        assert n_tokens % 32 == session.stats().tail_tokens
        window_holds_the_layout(session)
        session.append("Next.")
        assert n_tokens == session.messages()[-1].span.start
        window_holds_the_layout(session)


def test_row75_a_second_stream_ends_the_first_at_a_token_boundary(sessions):
    with sessions.open() as session:
        sessions.fill(session, 20)
        first = session.stream("One?", max_new_tokens=100)
        shown = ""
        while len(shown) < 10:
            item = next(first)
            shown += item.text if isinstance(item, TextDelta) else ""
        reply = session.generate("Two?", max_new_tokens=5)
        assert [] == list(first)
        texts = [message.text for message in session.messages()[-3:]]
        assert [shown, "Two?", reply.text] == texts
        window_holds_the_layout(session)


class Odd(FocusPolicy):
    """Gives scores and reveals in one of the ways a plugin may get wrong."""

    name = "odd"

    def __init__(self, how):
        self.how = how

    def score(self, view):
        n = len(view.entries)
        return {
            "inf": np.full(n, np.inf, np.float32),
            "two dimensions": np.zeros((n, 1), np.float32),
            "none": None,
            "list": [0.5] * n,
            "text": np.array(["x"] * n),
            "float64": np.linspace(-1, 1, n),
        }.get(self.how, np.zeros(n, np.float32))

    def reveals(self, view, limit):
        return {
            "reveal beyond": [Reveal(10**9, 0.9)],
            "reveal before": [Reveal(-1, 0.9)],
            "reveal nan": [Reveal(3, float("nan"))],
            "reveal none": None,
        }.get(self.how, ())


@pytest.mark.parametrize(
    ("how", "falls_back"),
    [
        ("inf", True),
        ("two dimensions", True),
        ("none", True),
        ("list", True),
        ("text", True),
        ("float64", False),
        ("reveal beyond", False),
        ("reveal before", False),
        ("reveal nan", True),
        ("reveal none", True),
    ],
)
def test_row75_whatever_a_policy_returns_the_session_answers(sessions, how, falls_back):
    sink = InMemorySink()
    with sessions.open(focus=Odd(how), sinks=(sink,)) as session:
        sessions.fill(session, 60)
        reply = session.generate("Day 7?", max_new_tokens=40)
        assert 40 == reply.usage.generated_tokens
        window_holds_the_layout(session)
    wrong = {(event.role, event.used) for event in sink.named("fallback")}
    assert wrong == ({("focus", "recency")} if falls_back else set())
    assert () == tuple(sink.named("invariant_violation"))


def test_row75_an_idle_policy_takes_no_action_but_making_room(sessions):
    sink = InMemorySink()
    with sessions.open(focus=Odd("zeros"), sinks=(sink,)) as session:
        sessions.fill(session, 80)
        session.generate("Day 7?", max_new_tokens=70)
        assert all(not event.actions for event in sink.named("refocus"))
        kinds = {action.kind for event in sink.named("assemble") for action in event.actions}
        assert {"collapse", "expand"} >= kinds >= {"collapse"}
        window_holds_the_layout(session)


@pytest.mark.parametrize("w_max", [1, 64, 200, 10**6])
def test_row75_a_budget_nobody_can_keep_is_refused_before_anything_is_opened(sessions, w_max):
    with pytest.raises(ConfigError) as caught:
        sessions.open(w_max=w_max)
    assert ("w_max", w_max) == (caught.value.field, caught.value.value)
