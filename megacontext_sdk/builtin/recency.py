"""Recency focus: the newest text in detail, the rest as gists.

It serves when another policy fails, so it looks at nothing but the entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.builtin.threshold import choose, focus_scores
from megacontext_sdk.contracts.focus import FocusPolicy

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Floats
    from megacontext_sdk.contracts.focus import FocusView

__all__ = ["RecencyFocus"]

RECENCY_TOKENS = 2048
"""Distance from the cursor at which utility is half."""


class RecencyFocus(FocusPolicy):
    """Scores entries by their distance from the cursor alone; reveals nothing."""

    name = "recency"

    def score(self, view: FocusView) -> Floats:
        """Return float32[E]: newer entries score higher; zero where the budget is full."""
        entries, budget = view.entries, view.budget
        distance = np.maximum(view.n_tokens - (entries.start + entries.n_tokens), 0)
        utility = 1.0 / (1.0 + distance / RECENCY_TOKENS)
        return focus_scores(entries, utility, choose(entries, utility, (), budget), budget)
