"""Events: light, complete, round trips, no content; the fan-out never disturbs a session."""

from __future__ import annotations

import json
import logging

import msgspec
import pytest

from megacontext_sdk import events
from megacontext_sdk.builtin.sinks import InMemorySink, JsonLinesSink, LoggingSink
from megacontext_sdk.contracts.telemetry import TelemetrySink
from megacontext_sdk.events import EVENTS, Telemetry, decode_event, encode_event

NAMES = [kind.__struct_config__.tag for kind in EVENTS]

SAMPLES = {
    "session_opened": events.SessionOpenedEvent(
        step=0, epoch=0, storage="memory", model="echo", focus="heuristic", gist="mean",
        runtime="plain", allocator="greedy", positions="compact", created=True, read_only=False,
        n_tokens=0, w_max=896,
    ),
    "ingest": events.IngestEvent(step=0, epoch=1, start=0, end=64, n_messages=2, source="append"),
    "gist": events.GistEvent(step=0, epoch=1, lod_counts={1: 32, 2: 1}),
    "assemble": events.AssembleEvent(
        step=0, epoch=2, n_tokens=64, n_entries=2, cost_before=64, cost_after=33, w_max=896,
        actions=(events.Action(kind="collapse", lod=1, index=0, score=None, delta_cost=-31),),
    ),
    "refocus": events.RefocusEvent(
        step=1, epoch=3, trigger="turn", iterations=2, n_tokens=64, epoch_before=2, epoch_after=3,
        budget_before=863, budget_after=832, cost_before=33, cost_after=64, entries_before=2,
        entries_replaced=1,
        actions=(events.Action(kind="expand", lod=1, index=0, score=0.5, delta_cost=31,
                               reason="lexical"),),
        skipped=(events.SkippedAction(kind="expand", lod=2, index=7, score=0.3,
                                      reason="budget"),),
        lod_counts={0: 2}, policy="heuristic", cooldowns=1,
        scores=events.ScoreSummary(mean=0.0, std=0.1, min=-0.1, max=0.5, saturation=0.0),
        scope_seconds=0.1, score_seconds=0.2, plan_seconds=0.3, apply_seconds=0.4,
    ),
    "swap": events.SwapEvent(
        step=1, epoch=3, seconds=0.01, rows_new=32, rows_cached=0, rows_seam=16, rows_released=1,
        rows_moved=31, rows_live=64, stale_rows=0, forwards=1,
    ),
    "rebuild": events.RebuildEvent(
        step=1, epoch=3, reason="swaps", rows=64, stale_rows=12, swaps_since_rebuild=17
    ),
    "audit": events.AuditEvent(
        step=1, epoch=3, kl_mean_nats=0.001, kl_p95_nats=0.004, top1_agreement=0.99, n_rows=64,
        stale_rows=12, swaps_since_rebuild=3,
    ),
    "decode": events.DecodeEvent(step=1, epoch=3, n_tokens=32, rows_live=96),
    "lossy": events.LossyEvent(step=1, epoch=3, what="recent_tokens", count=32, reason="budget"),
    "fallback": events.FallbackEvent(
        step=1, epoch=3, role="focus", wanted="acme", used="recency", reason="ValueError"
    ),
    "invariant_violation": events.InvariantViolationEvent(
        step=1, epoch=3, code="I1", detail="cost 900 > 896", action="rolled back"
    ),
    "session_closed": events.SessionClosedEvent(step=1, epoch=3, n_tokens=64),
}  # fmt: skip


class Failing(TelemetrySink):
    """Raises on the events it is told to."""

    name = "failing"

    def __init__(self, times=99):
        self.times = times
        self.calls = 0

    def emit(self, event):
        self.calls += 1
        if self.calls <= self.times:
            raise RuntimeError

    def close(self):
        raise OSError


# -- the events ------------------------------------------------------------------------------------


def test_every_event_of_this_version_has_a_sample_here():
    assert NAMES == list(SAMPLES)


def test_names_are_those_of_the_specification():
    specified = {
        "ingest", "gist", "assemble", "refocus", "swap", "rebuild", "audit", "decode", "lossy",
        "fallback", "invariant_violation",
    }  # fmt: skip
    assert specified | {"session_opened", "session_closed"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_event_round_trips_as_one_line_of_json(name):
    line = encode_event(SAMPLES[name])
    assert b"\n" not in line
    assert name == json.loads(line)["event"]
    assert SAMPLES[name] == decode_event(line)


@pytest.mark.parametrize("name", NAMES)
def test_every_event_has_step_epoch_and_seconds(name):
    assert {"step", "epoch", "seconds"} <= set(type(SAMPLES[name]).__struct_fields__)


@pytest.mark.parametrize("name", NAMES)
def test_events_are_frozen_and_need_keywords(name):
    with pytest.raises(AttributeError):
        SAMPLES[name].step = 7
    with pytest.raises(TypeError):
        type(SAMPLES[name])(1, 2)


@pytest.mark.parametrize("kind", EVENTS)
def test_no_event_has_a_field_for_content(kind):
    banned = {"text", "token_ids", "ids", "content", "message", "query", "prompt", "vector"}
    assert set() == banned & set(kind.__struct_fields__)


def test_a_line_that_is_no_event_is_refused():
    with pytest.raises(msgspec.ValidationError):
        decode_event(b'{"event": "holiday", "step": 1, "epoch": 1}')


def test_a_line_with_a_wrong_type_is_refused():
    with pytest.raises(msgspec.ValidationError):
        decode_event(b'{"event": "gist", "step": "one", "epoch": 1, "lod_counts": {}}')


# -- the fan-out -----------------------------------------------------------------------------------


def test_every_sink_gets_every_event_in_order():
    left, right = InMemorySink(), InMemorySink()
    telemetry = Telemetry([left, right])
    for event in SAMPLES.values():
        telemetry.emit(event)
    assert tuple(SAMPLES.values()) == left.events == right.events


def test_without_sinks_nothing_is_active():
    telemetry = Telemetry()
    telemetry.emit(SAMPLES["gist"])
    assert telemetry.is_active is False
    assert Telemetry([InMemorySink()]).is_active is True


def test_row94_a_raising_sink_does_not_disturb_the_others(caplog):
    sink = InMemorySink()
    telemetry = Telemetry([Failing(times=2), sink])
    for _ in range(5):
        telemetry.emit(SAMPLES["gist"])
    assert 5 == len(sink.events)
    assert 2 == caplog.text.count("sink failing: RuntimeError in emit")


def test_row94_a_sink_is_dropped_after_three_exceptions_with_a_fallback_event():
    failing, sink = Failing(), InMemorySink()
    telemetry = Telemetry([failing, sink])
    for _ in range(6):
        telemetry.emit(SAMPLES["refocus"])
    assert 3 == failing.calls
    assert 6 == len(sink.named("refocus"))
    (fallback,) = sink.named("fallback")
    assert ("sink", "failing", "none", 1, 3) == (
        fallback.role,
        fallback.wanted,
        fallback.used,
        fallback.step,
        fallback.epoch,
    )


def test_the_last_sink_may_be_dropped():
    telemetry = Telemetry([Failing()])
    for _ in range(4):
        telemetry.emit(SAMPLES["gist"])
    assert telemetry.is_active is False


def test_two_failing_sinks_are_dropped_in_one_round():
    left, right = Failing(), Failing()
    telemetry = Telemetry([left, right])
    for _ in range(9):
        telemetry.emit(SAMPLES["gist"])
    assert telemetry.is_active is False
    assert (3, 3) == (left.calls, right.calls)


def test_closing_reaches_every_sink_and_logs_what_they_raise(tmp_path, caplog):
    path = tmp_path / "trace.jsonl"
    telemetry = Telemetry([Failing(), JsonLinesSink(path)])
    telemetry.emit(SAMPLES["gist"])
    telemetry.close()
    assert 1 == len(path.read_bytes().splitlines())
    assert "sink failing: OSError in close" in caplog.text


# -- the built-in sinks ----------------------------------------------------------------------------


def test_the_logging_sink_writes_one_debug_line_per_event(caplog):
    caplog.set_level(logging.DEBUG, logger="megacontext_sdk.telemetry")
    LoggingSink().emit(SAMPLES["gist"])
    (record,) = caplog.records
    assert logging.DEBUG == record.levelno
    assert SAMPLES["gist"] == decode_event(record.getMessage())


def test_the_logging_sink_is_silent_above_debug(caplog):
    caplog.set_level(logging.INFO, logger="megacontext_sdk.telemetry")
    LoggingSink().emit(SAMPLES["gist"])
    assert [] == caplog.records


def test_the_memory_sink_keeps_the_newest_events():
    sink = InMemorySink(limit=2)
    for name in ("ingest", "gist", "assemble"):
        sink.emit(SAMPLES[name])
    assert (SAMPLES["gist"], SAMPLES["assemble"]) == sink.events
    assert (SAMPLES["gist"],) == sink.named("gist")
    assert () == sink.named("ingest")


def test_the_file_sink_appends_lines_that_decode_again(tmp_path):
    path = tmp_path / "trace.jsonl"
    for _ in range(2):
        sink = JsonLinesSink(path)
        for event in SAMPLES.values():
            sink.emit(event)
        sink.close()
        sink.close()
    decoded = [decode_event(line) for line in path.read_bytes().splitlines()]
    assert [*SAMPLES.values(), *SAMPLES.values()] == decoded


def test_the_file_sink_creates_nothing_before_the_first_event(tmp_path):
    sink = JsonLinesSink(tmp_path / "trace.jsonl")
    sink.close()
    assert [] == list(tmp_path.iterdir())


def test_a_file_sink_that_cannot_write_does_not_disturb(tmp_path):
    sink = InMemorySink()
    telemetry = Telemetry([JsonLinesSink(tmp_path / "nowhere" / "trace.jsonl"), sink])
    for _ in range(3):
        telemetry.emit(SAMPLES["gist"])
    assert ("sink", "jsonl") == (sink.events[-1].role, sink.events[-1].wanted)
