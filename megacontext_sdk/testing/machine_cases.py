"""The state machine as a test of `CrashConformance`: 200 examples of 75 steps."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from megacontext_sdk.testing.crash_base import CrashBase
from megacontext_sdk.testing.encoders import slow_trailing_mean
from megacontext_sdk.testing.machine import SessionMachine

__all__ = ["MachineCases"]


class MachineCases(CrashBase):
    """Any order of calls on a whole session.

    Attributes:
        n_examples: how many orders.
        n_lagging_examples: how many of them again with an encoder that runs behind.
    """

    n_examples: int = 200
    n_lagging_examples: int = 10

    def test_any_order_of_calls_agrees_with_an_in_memory_session(self) -> None:
        """Append, retry, reopen, crash, snapshot, restore, fork, forget, rebuild."""
        self._run(self.n_examples, {})

    def test_any_order_of_calls_agrees_while_gists_lag(self) -> None:
        """The same with an encoder that is slow and runs behind; the other session waits for it."""
        self._run(self.n_lagging_examples, {"encoder": staticmethod(slow_trailing_mean)})

    def _run(self, n_examples: int, attributes: dict[str, object]) -> None:
        machine = type("Machine", (SessionMachine,), {"storage": self.storage, **attributes})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=n_examples * self.effort,
                stateful_step_count=75,
                deadline=None,
                derandomize=True,
                database=None,
                phases=(Phase.generate,),  # what fails is printed with its steps, not shrunk
                suppress_health_check=list(HealthCheck),
            ),
        )
