"""The invariant checker: every fault is found, rolled back and reported."""

from __future__ import annotations

import pickle

import attrs
import numpy as np
import pytest

from megacontext_sdk.contracts.focus import Budget, Move, Plan
from megacontext_sdk.errors import (
    AlignmentError,
    BudgetExceededError,
    ContiguityError,
    CoverageError,
    InvariantError,
    LodError,
    ProtectionError,
)
from megacontext_sdk.focus.invariants import check_entries, check_swap, check_tiling
from megacontext_sdk.focus.working_context import WorkingContext
from megacontext_sdk.memory.lod import NodeId, Span

RUNS = [(2, 0, 1), (1, 32, 44), (0, 44, 50), (0, 50, 51)]
N_TOKENS = 50 * 32 + 7
LEGAL = Plan(moves=(Move(kind="expand", node=NodeId(1, 40), score=0.5, delta_cost=31),))


def changed(entries, **columns):
    """Entries with single elements replaced: `start=(3, 17)` sets start[3] = 17."""
    new = {}
    for name, (at, value) in columns.items():
        array = getattr(entries, name).copy()
        array[at] = value
        new[name] = array
    return attrs.evolve(entries, **new)


def cut(entries, keep):
    """Entries without those where `keep` is false."""
    return attrs.evolve(
        entries, **{name: getattr(entries, name)[keep] for name in attrs.fields_dict(type(entries))}
    )


def without_last(entries):
    return cut(entries, np.arange(len(entries)) < len(entries) - 1)


def without_third(entries):
    return cut(entries, np.arange(len(entries)) != 2)


def expensive(entries):
    return attrs.evolve(entries, cost=np.where(entries.lod == 0, 512, 1))


# One fault per invariant: what an edit could do wrong, the code and the error it must raise.
FAULTS = {
    "I2 the newest tokens are lost": (without_last, "I2", CoverageError),
    "I2 the oldest tokens are lost": (
        lambda e: cut(e, np.arange(len(e)) > 0), "I2", CoverageError,
    ),
    "I3 a gap": (without_third, "I3", ContiguityError),
    "I3 an overlap": (lambda e: changed(e, n_tokens=(2, 64)), "I3", ContiguityError),
    "I4 a boundary inside a block": (
        lambda e: changed(changed(e, n_tokens=(3, 16)), start=(4, 33 * 32 + 64 - 16),
                          n_tokens=(4, 48)),
        "I4", AlignmentError,
    ),
    "I5 a gist at the price of a block": (lambda e: changed(e, cost=(1, 32)), "I5", LodError),
    "I5 a wrong index": (lambda e: changed(e, index=(1, 33)), "I5", LodError),
    "I5 a gist over the partial tail": (
        lambda e: changed(e, lod=(-1, 1), cost=(-1, 1)), "I5", LodError,
    ),
    "I5 a level nobody has": (lambda e: changed(e, lod=(1, 11)), "I5", LodError),
    "I8 arrays of different lengths": (
        lambda e: attrs.evolve(e, residency=e.residency[:-1]), "I8", InvariantError,
    ),
    "I10 a protected gist": (
        lambda e: changed(e, lod=(-2, 1), cost=(-2, 1)), "I10", ProtectionError,
    ),
    "I10 a lost flag": (lambda e: changed(e, protected=(-1, False)), "I10", ProtectionError),
}  # fmt: skip


class Faulty(WorkingContext):
    """A working context whose edits go wrong in one way."""

    fault = staticmethod(lambda entries: entries)

    def _finish(self, draft, protection):
        return self.fault(super()._finish(draft, protection))


@pytest.fixture
def faulty(tiled):
    def make(fault, *, strict=False):
        wc = tiled(
            RUNS, N_TOKENS, Budget(w_max=1024, sink_blocks=0, recent_tokens=64),
            strict=strict, kind=Faulty,
        )  # fmt: skip
        wc.fault = fault
        return wc

    return make


@pytest.mark.parametrize("name", FAULTS)
def test_row52_a_fault_is_detected_rolled_back_and_reported(faulty, fields_of, name):
    fault, code, _ = FAULTS[name]
    wc = faulty(fault)
    before, epoch, cost = fields_of(wc.entries), wc.epoch, wc.cost
    applied = wc.apply(LEGAL)
    assert code == applied.violation.split(":")[0]
    assert ((), 0, False) == (applied.moves, applied.entries_replaced, applied.rebuilt)
    assert (epoch, epoch) == (applied.epoch_before, applied.epoch_after)
    assert (before, epoch, cost) == (fields_of(wc.entries), wc.epoch, wc.cost)
    wc.check()


@pytest.mark.parametrize("name", FAULTS)
def test_row52_strict_mode_raises_the_typed_error_and_changes_nothing(faulty, fields_of, name):
    fault, code, kind = FAULTS[name]
    wc = faulty(fault, strict=True)
    before = fields_of(wc.entries)
    with pytest.raises(kind) as caught:
        wc.apply(LEGAL)
    assert (code, wc.epoch) == (caught.value.code, caught.value.epoch)
    assert caught.value.detail
    assert before == fields_of(wc.entries)


def test_row52_a_plan_over_budget_is_detected_and_rolled_back(tiled):
    budget = Budget(w_max=512, sink_blocks=0, recent_tokens=64)
    wc = tiled([(1, 0, 60), (0, 60, 62)], 62 * 32, budget, strict=False)
    moves = tuple(
        Move(kind="expand", node=NodeId(1, i), score=0.9, delta_cost=31) for i in range(20)
    )
    cost = wc.cost
    applied = wc.apply(Plan(moves=moves))
    assert applied.violation.startswith("I1: ")
    assert "w_max 512" in applied.violation
    assert cost == wc.cost
    wc.check()


ILLEGAL = {
    "expand a raw block": ("expand", NodeId(0, 45)),
    "expand what is no entry": ("expand", NodeId(2, 1)),
    "expand behind the end": ("expand", NodeId(1, 4000)),
    "collapse with a child missing": ("collapse", NodeId(2, 1)),
    "collapse with children at two levels": ("collapse", NodeId(3, 0)),
    "collapse what is coarse already": ("collapse", NodeId(1, 33)),
    "collapse a protected block": ("collapse", NodeId(1, 49)),
    "collapse the partial tail": ("collapse", NodeId(1, 50)),
    "collapse into a raw block": ("collapse", NodeId(0, 44)),
    "collapse above the highest level": ("collapse", NodeId(11, 0)),
    "collapse before the beginning": ("collapse", NodeId(1, -1)),
    "reveal a raw block": ("reveal", NodeId(0, 45)),
    "reveal the partial tail": ("reveal", NodeId(0, 50)),
    "reveal a gist": ("reveal", NodeId(1, 33)),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_row52_an_illegal_move_is_detected_and_undoes_the_whole_plan(faulty, fields_of, name):
    kind, node = ILLEGAL[name]
    wc = faulty(lambda entries: entries)
    before = fields_of(wc.entries)
    bad = Move(kind=kind, node=node, score=0.5, delta_cost=0)
    applied = wc.apply(Plan(moves=(*LEGAL.moves, bad)))
    assert applied.violation.startswith("I9: ")
    assert before == fields_of(wc.entries)


def test_row52_half_a_swap_is_detected(tiled):
    before = tiled(RUNS, N_TOKENS, Budget(w_max=1024)).entries
    origin = np.arange(len(before))
    check_swap(before, before, origin)
    origin[3] = -1
    check_swap(before, before, origin)  # one node against itself is a whole swap
    after = cut(before, np.arange(len(before)) != 4)
    lost = origin[np.arange(len(before)) != 4]
    with pytest.raises(InvariantError) as caught:
        check_swap(before, after, lost)
    assert "I8" == caught.value.code
    with pytest.raises(InvariantError, match="origins"):
        check_swap(before, after, origin)


def test_row52_a_broken_state_is_rebuilt_by_the_initial_layout(faulty):
    wc = faulty(lambda entries: changed(entries, start=(1, 1)))
    # Corrupt what a rollback would return to, as a stray write would.
    wc._state = attrs.evolve(wc._state, entries=changed(wc.entries, start=(1, 1)))
    applied = wc.apply(LEGAL)
    assert applied.violation
    assert applied.rebuilt
    assert applied.epoch_after > applied.epoch_before
    wc.check()


def test_row52_growth_that_goes_wrong_is_rebuilt_by_the_initial_layout(faulty):
    wc = faulty(without_third)
    applied = wc.extend(N_TOKENS + 320)
    assert applied.violation.startswith("I3")
    assert applied.rebuilt
    assert N_TOKENS + 320 == wc.n_tokens
    wc.check()


def test_row52_growth_that_goes_wrong_raises_in_strict_mode(faulty):
    wc = faulty(without_third, strict=True)
    with pytest.raises(ContiguityError):
        wc.extend(N_TOKENS + 320)
    assert N_TOKENS == wc.n_tokens
    wc.check()


def test_invariant_errors_survive_pickling():
    error = BudgetExceededError("I1 is broken", code="I1", detail="too much", epoch=3)
    again = pickle.loads(pickle.dumps(error))
    assert (BudgetExceededError, "I1", 3) == (type(again), again.code, again.epoch)


def test_an_empty_history_keeps_all_invariants(context):
    wc = context()
    wc.check()
    assert 0 == len(wc.entries) == wc.cost
    with pytest.raises(CoverageError):
        check_tiling(wc.entries, 1, 1)


def test_pins_count_as_protection(context):
    wc = context(Budget(w_max=1024))
    wc.lay_out(60_000)
    wc.pin(Span(10_000, 10_032))
    at = int(np.flatnonzero(wc.entries.pinned)[0])
    broken = changed(wc.entries, lod=(at, 1), cost=(at, 1))
    with pytest.raises(ProtectionError, match="I10"):
        check_entries(broken, 60_000, wc.budget, wc.protection)
