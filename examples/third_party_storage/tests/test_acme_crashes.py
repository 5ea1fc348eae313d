"""What memories on this storage survive: kills, full disks, damage, races."""

import pytest

from megacontext_sdk.testing import CrashConformance


class TestAcmeCrashes(CrashConformance):
    storage = "acme_memory.store:AcmeStorage"
    # An example is tested on every change, so it takes less of everything than a backend should.
    n_flips = 100
    n_damages = 60
    n_examples = 20

    @pytest.mark.xfail(
        reason="SQLite undoes a failed commit by itself: it writes the old pages back from its "
        "journal and flushes them, on the descriptor whose flush failed",
        strict=False,  # not every failing call is a flush
    )
    @pytest.mark.parametrize("fault", ["once", "for ever", "full once", "short"])
    def test_a_failing_call_of_the_engine_is_typed_and_loses_nothing_acknowledged(
        self, copies, tmp_path, fault
    ):
        super().test_a_failing_call_of_the_engine_is_typed_and_loses_nothing_acknowledged(
            copies, tmp_path, fault
        )
