"""Turns what happened into telemetry events. Makes none when nobody listens; decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk import events

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from megacontext_sdk.contracts.arrays import Floats
    from megacontext_sdk.contracts.focus import Move, Skipped
    from megacontext_sdk.focus.refocus import RefocusRecord
    from megacontext_sdk.focus.working_context import AppliedPlan
    from megacontext_sdk.results import Audit
    from megacontext_sdk.runtime.pager import SyncReport
    from megacontext_sdk.runtime.state import SessionState

__all__ = [
    "assemble",
    "audit",
    "decode",
    "gist",
    "ingest",
    "lossy",
    "rebuild",
    "refocus",
    "swap",
]

_SATURATED = 0.98


def ingest(state: SessionState, n_messages: int, source: str) -> None:
    """Report tokens that were accepted."""
    if state.telemetry.is_active:
        state.telemetry.emit(
            events.IngestEvent(
                step=state.step,
                epoch=state.wc.epoch,
                start=state.wc.n_tokens,
                end=state.tree.n_tokens,
                n_messages=n_messages,
                source=source,
            )
        )


def gist(state: SessionState, made: Mapping[int, int]) -> None:
    """Report gists that were made, per level, and how many nodes wait for theirs."""
    if not state.telemetry.is_active:
        return
    counts = {lod: n for lod, n in made.items() if n}
    n_missing = state.tree.n_missing_gists
    if counts or n_missing:
        state.telemetry.emit(
            events.GistEvent(
                step=state.step,
                epoch=state.wc.epoch,
                lod_counts=counts,
                version=state.tree.gist_version,
                provisional=n_missing,
            )
        )


def assemble(state: SessionState, applied: AppliedPlan, seconds: float) -> None:
    """Report history that became entries."""
    if state.telemetry.is_active:
        state.telemetry.emit(
            events.AssembleEvent(
                step=state.step,
                epoch=state.wc.epoch,
                seconds=seconds,
                n_tokens=state.wc.n_tokens,
                n_entries=len(state.wc.entries),
                cost_before=applied.cost_before,
                cost_after=applied.cost_after,
                w_max=state.budget.w_max,
                added=applied.added,
                actions=_actions(applied.moves),
            )
        )
    if applied.yielded:
        lossy(state, "protection", len(applied.yielded), ", ".join(applied.yielded))
    if applied.violation is not None:
        _violation(state, applied.violation, "laid out anew" if applied.rebuilt else "rolled back")


def lossy(state: SessionState, what: str, count: int, reason: str) -> None:
    """Report something shown or kept in a lesser form than promised (I16)."""
    if state.telemetry.is_active:
        state.telemetry.emit(
            events.LossyEvent(
                step=state.step,
                epoch=state.wc.epoch,
                what=what,
                count=count,
                reason=reason,
            )
        )


def refocus(state: SessionState, record: RefocusRecord) -> None:
    """Report one refocus, and what went wrong in it."""
    telemetry = state.telemetry
    if not telemetry.is_active:
        return
    w_max = state.budget.w_max
    lods, counts = np.unique(state.wc.entries.lod, return_counts=True)
    telemetry.emit(
        events.RefocusEvent(
            step=state.step,
            epoch=record.epoch_after,
            seconds=record.scope_seconds
            + record.score_seconds
            + record.plan_seconds
            + record.apply_seconds,
            trigger=record.trigger,
            iterations=record.iterations,
            n_tokens=state.wc.n_tokens,
            epoch_before=record.epoch_before,
            epoch_after=record.epoch_after,
            budget_before=w_max - record.cost_before,
            budget_after=w_max - record.cost_after,
            cost_before=record.cost_before,
            cost_after=record.cost_after,
            entries_before=record.entries_before,
            entries_replaced=record.entries_replaced,
            actions=_actions(record.moves),
            skipped=_skipped(record.skipped),
            lod_counts=dict(zip(lods.tolist(), counts.tolist(), strict=True)),
            policy=state.refocuser.policy.name,
            scores=_summary(record.scores),
            scope_seconds=record.scope_seconds,
            score_seconds=record.score_seconds,
            plan_seconds=record.plan_seconds,
            apply_seconds=record.apply_seconds,
        )
    )
    _problems(state, record)


def _problems(state: SessionState, record: RefocusRecord) -> None:
    for reason in record.fallbacks:
        state.telemetry.emit(
            events.FallbackEvent(
                step=state.step,
                epoch=state.wc.epoch,
                role="focus",
                wanted=state.refocuser.policy.name,
                used=state.refocuser.fallback.name,
                reason=reason,
            )
        )
    for detail in record.violations:
        _violation(state, detail, "rolled back")


def _violation(state: SessionState, detail: str, action: str) -> None:
    if state.telemetry.is_active:
        state.telemetry.emit(
            events.InvariantViolationEvent(
                step=state.step,
                epoch=state.wc.epoch,
                code=detail.partition(":")[0],
                detail=detail,
                action=action,
            )
        )


def swap(state: SessionState, report: SyncReport, seconds: float) -> None:
    """Report the window following the layout."""
    if state.telemetry.is_active:
        state.telemetry.emit(
            events.SwapEvent(
                step=state.step,
                epoch=state.wc.epoch,
                seconds=seconds,
                rows_new=report.rows_new,
                rows_cached=report.rows_cached,
                rows_seam=report.rows_seam,
                rows_released=report.rows_released,
                rows_moved=report.rows_moved,
                rows_live=state.pager.n_live,
                stale_rows=state.pager.stale_rows,
                forwards=report.forwards,
            )
        )


def rebuild(state: SessionState, reason: str) -> None:
    """Report that the window is about to be recomputed exactly, and why."""
    if state.telemetry.is_active:
        state.telemetry.emit(
            events.RebuildEvent(
                step=state.step,
                epoch=state.wc.epoch,
                reason=reason,
                rows=state.wc.cost,
                stale_rows=state.pager.stale_rows,
                swaps_since_rebuild=state.pager.swaps_since_rebuild,
            )
        )


def audit(state: SessionState, result: Audit, seconds: float) -> None:
    """Report the distance of the served window from an exact one."""
    if state.telemetry.is_active:
        state.telemetry.emit(
            events.AuditEvent(
                step=state.step,
                epoch=state.wc.epoch,
                seconds=seconds,
                kl_mean_nats=result.kl_mean_nats,
                kl_p95_nats=result.kl_p95_nats,
                top1_agreement=result.top1_agreement,
                n_rows=result.n_rows,
                stale_rows=result.stale_rows,
                swaps_since_rebuild=result.swaps_since_rebuild,
            )
        )


def decode(
    state: SessionState, n_tokens: int, seconds: float, finish_reason: str | None = None
) -> None:
    """Report tokens generated since the last block boundary."""
    if state.telemetry.is_active:
        state.telemetry.emit(
            events.DecodeEvent(
                step=state.step,
                epoch=state.wc.epoch,
                seconds=seconds,
                n_tokens=n_tokens,
                rows_live=state.pager.n_live,
                finish_reason=finish_reason,
            )
        )


def _actions(moves: Sequence[Move]) -> tuple[events.Action, ...]:
    return tuple(
        events.Action(
            kind=move.kind,
            lod=move.node.lod,
            index=move.node.index,
            score=_score(move.score),
            delta_cost=move.delta_cost,
            n_actions=move.n_actions,
            reason=move.reason,
        )
        for move in moves
    )


def _skipped(skipped: Sequence[Skipped]) -> tuple[events.SkippedAction, ...]:
    return tuple(
        events.SkippedAction(
            kind=one.kind,
            lod=one.node.lod,
            index=one.node.index,
            score=_score(one.score),
            reason=one.reason,
        )
        for one in skipped
    )


def _score(score: float) -> float | None:
    """JSON knows no NaN: an unscored move has no score."""
    return score if score == score else None  # noqa: PLR0124 - true for all but NaN


def _summary(scores: Floats) -> events.ScoreSummary | None:
    if not len(scores):
        return None
    return events.ScoreSummary(
        mean=float(scores.mean()),
        std=float(scores.std()),
        min=float(scores.min()),
        max=float(scores.max()),
        saturation=float((np.abs(scores) > _SATURATED).mean()),
    )
