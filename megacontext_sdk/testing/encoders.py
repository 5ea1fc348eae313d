"""Encoders that differ in nothing but their fingerprint, so that a rebuild has something to do.

Their gists equal those of `mean`, bit for bit: what serves can be compared with any other session.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from megacontext_sdk.builtin.mean_gist import MeanGistEncoder

if TYPE_CHECKING:
    from megacontext_sdk.contracts.model import ModelInfo

__all__ = ["NumberedMean"]


class NumberedMean(MeanGistEncoder):
    """The mean, under a name and fingerprint of its own.

    Args:
        number: makes them.
    """

    def __init__(self, number: int) -> None:
        super().__init__(1)
        self.name = f"mean-{number}"

    def fingerprint(self, info: ModelInfo) -> str:
        """Return the digest of the name and of all the mean depends on."""
        return sha256(f"{self.name} {super().fingerprint(info)}".encode()).hexdigest()
