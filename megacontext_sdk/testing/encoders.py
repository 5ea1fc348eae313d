"""Encoders for tests: some differ in nothing but their fingerprint, some are slow, some fail.

What they give is known in advance, so that what serves can be compared with any other session.
"""

from __future__ import annotations

import time
from hashlib import sha256
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.contracts.gist import Gists
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from megacontext_sdk.contracts.gist import Blocks, GistServices
    from megacontext_sdk.contracts.model import ModelInfo

__all__ = ["NumberedMean", "TrailingMean", "slow_trailing_mean"]

_LEFT_SHARE = np.float32(0.25)


class NumberedMean(MeanGistEncoder):
    """The mean, under a name and fingerprint of its own; its gists equal those of `mean`.

    Args:
        number: makes name and fingerprint.
        gist_slots: S.
    """

    def __init__(self, number: int, gist_slots: int = 1) -> None:
        super().__init__(gist_slots)
        self.name = f"mean-{number}"

    def fingerprint(self, info: ModelInfo) -> str:
        """Return the digest of the name and of all the mean depends on."""
        return sha256(f"{self.name} {super().fingerprint(info)}".encode()).hexdigest()


class TrailingMean(NumberedMean):
    """A mean turned round that looks left of its block and runs behind; never equal to `mean`.

    The number changes name and fingerprint only. Tests set the other attributes while it works.

    Attributes:
        seconds: how long it takes for each block.
        breaks: "" works; "raise" raises, "nan" gives numbers that are none, "hang" does not return
            before `released` is set.
        released: ends what hangs.
        n_blocks: blocks encoded so far.
    """

    left_tokens = 80
    runs_behind = True

    def __init__(self, number: int = 0, gist_slots: int = 1, *, seconds: float = 0.0) -> None:
        super().__init__(number, gist_slots)
        self.name = f"trailing-{number}"
        self.seconds = seconds
        self.breaks = ""
        self.released = Event()
        self.n_blocks = 0

    def encode_blocks(self, blocks: Blocks, services: GistServices) -> Gists:
        """Encode blocks: minus their mean and a quarter of the mean left of them."""
        made = super().encode_blocks(blocks, services)
        if self.breaks == "hang":
            self.released.wait()
        if self.breaks == "raise":
            raise RuntimeError("no device")
        if self.seconds:
            time.sleep(self.seconds * len(blocks))
        self.n_blocks += len(blocks)
        rows = -made.rows
        table = services.embedding_table()
        ids = np.concatenate([blocks.left, blocks.token_ids.reshape(-1)])
        for number in range(len(blocks)):
            end = len(blocks.left) + number * BLOCK_SIZE
            left = ids[max(0, end - self.left_tokens) : end]
            if len(left):
                rows[number] -= _LEFT_SHARE * table[left].mean(axis=0)
        if self.breaks == "nan" and len(blocks):
            rows[-1] = np.nan
        return Gists(rows, made.aux)


def slow_trailing_mean(number: int) -> TrailingMean:
    """Return an encoder that takes a millisecond for each block: slower than any disk."""
    return TrailingMean(number, seconds=0.001)
