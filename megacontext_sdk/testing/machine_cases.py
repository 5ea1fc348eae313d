"""The state machine as a test of `CrashConformance`: 200 examples of 75 steps."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from megacontext_sdk.testing.crash_base import CrashBase
from megacontext_sdk.testing.machine import SessionMachine

__all__ = ["MachineCases"]


class MachineCases(CrashBase):
    """Any order of calls on a whole session.

    Attributes:
        n_examples: how many orders.
    """

    n_examples: int = 200

    def test_any_order_of_calls_agrees_with_an_in_memory_session(self) -> None:
        """Append, retry, reopen, crash, snapshot, restore, fork, forget, rebuild."""
        machine = type("Machine", (SessionMachine,), {"storage": self.storage})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=self.n_examples * self.effort,
                stateful_step_count=75,
                deadline=None,
                derandomize=True,
                database=None,
                phases=(Phase.generate,),  # what fails is printed with its steps, not shrunk
                suppress_health_check=list(HealthCheck),
            ),
        )
