"""The demo: a long history, facts told in between, questions about them; all figures measured.

Applications never need it. It uses the public API as any program would.
"""

from __future__ import annotations

from megacontext_sdk.demo.facts import Fact, is_correct, make_facts
from megacontext_sdk.demo.history import Item, build_history

__all__ = ["Fact", "Item", "build_history", "is_correct", "make_facts"]
