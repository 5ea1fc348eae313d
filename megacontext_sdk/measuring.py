"""What measurements take from inside: gists as they are stored, the window as it is served.

For plugins that evaluate models and encoders on the deployed path. It decides nothing about what is
measured, and leaves a session as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.model import RowBatch
from megacontext_sdk.errors import ConfigError, ModelError
from megacontext_sdk.memory.gist_rows import RowCodec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from megacontext_sdk.contracts.arrays import Floats, Ids
    from megacontext_sdk.contracts.gist import Gists
    from megacontext_sdk.session import MemorySession

__all__ = ["as_stored", "read_on"]


def as_stored(gists: Gists, gist_dtype: str) -> Gists:
    """Return gists as a memory gives them back after it has stored them.

    Args:
        gists: rows float32[n, S, d] and aux float32[n, A].
        gist_dtype: how the memory stores them, as the setting of that name.

    Raises:
        ConfigError: an unknown type, or rows too wide to store.
    """
    _, slots, width = gists.rows.shape
    codec = RowCodec(slots, width, gists.aux.shape[1], gist_dtype)
    return codec.decode(codec.encode(gists))


def read_on(session: MemorySession, token_ids: Ids) -> NDArray[np.float64]:
    """Return what tokens that follow a history cost the model behind its window, in nats.

    The served window is brought in line with the working context, as for a reply, and read on with
    these tokens; they do not become part of the memory.

    Args:
        session: an open session; nothing of it changes.
        token_ids: int32[n], at least two; each but the first is scored by the one before it.

    Returns:
        float64[n - 1].

    Raises:
        ConfigError: fewer than two tokens, or more than the window has slots for.
        ModelError: the window gave no logits.
    """
    with session._reading():  # noqa: SLF001 - the session's own room
        state = session._parts.state  # noqa: SLF001
        state.sync(np.zeros(0, np.int32), want_logits=False)
        pager, n = state.pager, len(token_ids) - 1
        room = pager.window.capacity - pager.n_live
        if not 1 <= n <= room:
            raise ConfigError(
                f"{len(token_ids)} tokens cannot be read behind {pager.n_live} rows; give 2 to "
                f"{room + 1}",
                field="token_ids",
                value=len(token_ids),
            )
        first = state.scheme.next_position(state.wc.layout(), state.adapter.info)
        slots = np.arange(pager.n_live, pager.n_live + n)
        rows = RowBatch(
            np.asarray(token_ids[:-1], np.int32),
            np.zeros((0, state.adapter.info.hidden_size), np.float32),
        )
        try:
            output = pager.window.write(rows, np.arange(first, first + n), slots, "all")
            logits = None if output is None else output.numpy()
        finally:
            pager.window.release(slots)
    if logits is None:
        raise ModelError("the window gave no logits for the tokens that were read")
    return _nats(logits, np.asarray(token_ids[1:]))


def _nats(logits: Floats, targets: Ids) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    nats: NDArray[np.float64] = (
        np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(len(targets)), targets]
    )
    return nats
