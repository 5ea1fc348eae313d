"""What gists are worth: recovery between floors and ceiling, on held-out text, as served.

It measures encoders and trains none. `work` is the whole of `megacontext eval gists`.
"""

from __future__ import annotations

from megacontext_gistnet.evaluation.heldout import trained_on
from megacontext_gistnet.evaluation.job import Job, work
from megacontext_gistnet.evaluation.recovery import Recovery, Study
from megacontext_gistnet.evaluation.report import Report
from megacontext_gistnet.evaluation.run import Settings
from megacontext_gistnet.evaluation.windows import Windows, sample_windows

__all__ = [
    "Job",
    "Recovery",
    "Report",
    "Settings",
    "Study",
    "Windows",
    "sample_windows",
    "trained_on",
    "work",
]
