"""Which message owns a token: interpolation search over stored message rows.

Messages tile the tokens, so their starts ascend. Pages of 256 rows are read as needed and a few are
kept; memory is constant and two or three reads suffice at any length of history.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from megacontext_sdk.memory.chain import Position

__all__ = ["MessageIndex", "owner_in"]

_PAGE = 256
_PAGES_KEPT = 64


def owner_in(rows: NDArray[np.void], token_index: int) -> int:
    """Return the position, within rows that cover the token, of the one that owns it.

    A row without tokens shares its start with the row after it, so the last candidate is right.
    """
    return int(np.searchsorted(rows["start"], token_index, side="right")) - 1


class MessageIndex:
    """Finds messages by token. May be shared between threads.

    Args:
        read: returns MESSAGE rows `[start, stop)` of the store.
    """

    def __init__(self, read: Callable[[int, int], NDArray[np.void]]) -> None:
        self._read = read
        self._pages: OrderedDict[int, NDArray[np.void]] = OrderedDict()

    def find(self, token_index: int, stored: Position) -> int:
        """Return the number of the message that owns a stored token.

        Raises:
            CorruptError: the rows do not tile the tokens.
        """
        low, high = 0, (stored.n_messages - 1) // _PAGE
        low_token, high_token = 0, stored.n_tokens
        while low <= high:
            share = (token_index - low_token) / max(high_token - low_token, 1)
            number = min(low + int(share * (high - low + 1)), high)
            page = self._page(number, stored.n_messages)
            start, end = int(page["start"][0]), int(page["start"][-1] + page["n_tokens"][-1])
            if token_index < start:
                high, high_token = number - 1, start
            elif token_index >= end:
                low, low_token = number + 1, end
            else:
                return number * _PAGE + owner_in(page, token_index)
        raise CorruptError(
            f"no message owns token {token_index}; check the memory before writing to it",
            where="messages",
            offset=token_index,
            have_seq=stored.seq,
        )

    def _page(self, number: int, n_messages: int) -> NDArray[np.void]:
        """Return up to 256 rows, kept if the page is full and so will never change."""
        page = self._pages.get(number)
        if page is None:
            stop = min((number + 1) * _PAGE, n_messages)
            page = self._read(number * _PAGE, stop)
            if len(page) == _PAGE:
                self._pages[number] = page
                if len(self._pages) > _PAGES_KEPT:
                    self._pages.popitem(last=False)
        return page
