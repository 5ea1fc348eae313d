"""Running a gist encoder, which is foreign code: what it gives is checked before anybody uses it.

Whatever it raises, another shape than it declares, and numbers that cannot be stored are all one
`ModelError`. Where gists come from and where they go is not known here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.gist import Blocks, Gists
from megacontext_sdk.errors import ModelError
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from megacontext_sdk.contracts.arrays import Bytes2D
    from megacontext_sdk.contracts.gist import GistEncoder, GistServices
    from megacontext_sdk.memory.gist_rows import RowCodec

__all__ = ["GistMaker", "joined"]


class GistMaker:
    """Makes gists with one encoder. Used from one thread at a time.

    Args:
        encoder: makes them.
        services: what it may ask of the session.
        codec: layout of its rows.

    Attributes:
        encoder, services, codec: as given.
        encode_calls: nodes encoded so far, by level.
    """

    def __init__(self, encoder: GistEncoder, services: GistServices, codec: RowCodec) -> None:
        self.encoder = encoder
        self.services = services
        self.codec = codec
        self.encode_calls: dict[int, int] = {}

    def of_blocks(self, runs: Iterable[Blocks]) -> Gists:
        """Return gists of runs of blocks, one call of the encoder each.

        Raises:
            ModelError: the encoder fails, or gives what it does not declare.
        """
        encode = self.encoder.encode_blocks
        made = [
            self._run(1, len(blocks), lambda blocks=blocks: encode(blocks, self.services))  # type: ignore[misc]
            for blocks in runs
        ]
        return joined(made) if made else self._nothing()

    def of_children(self, lod: int, children: Gists) -> Gists:
        """Return gists of whole groups of 32 children as storage gives them back.

        Raises:
            ModelError: the encoder fails, or gives what it does not declare.
        """
        encode, n = self.encoder.encode_gists, len(children.rows) // BLOCK_SIZE
        return self._run(lod, n, lambda: encode(lod, children, self.services))

    def packed(self, lod: int, first: int, gists: Gists) -> tuple[Bytes2D, Gists]:
        """Return gists as they are stored, uint8[n, row_bytes], and as they come back from there.

        Raises:
            ModelError: numbers that cannot be stored; `node` names the first that has one.
        """
        raw = self.codec.encode(gists)
        return raw, self.checked(lod, first, self.codec.decode(raw))

    def rows(self, lod: int, first: int, below: Blocks | Bytes2D) -> Bytes2D:
        """Return rows as they are stored, uint8[n, row_bytes], of nodes whose content is given.

        Args:
            lod: their level.
            first: the first of them, to name it in an error.
            below: at LOD1 a run of blocks, above it stored rows of children uint8[n * 32, ...].

        Raises:
            ModelError: the encoder fails, or its numbers cannot be stored.
        """
        if isinstance(below, Blocks):
            return self.packed(lod, first, self.of_blocks([below]))[0]
        return self.packed(lod, first, self.of_children(lod, self.codec.decode(below)))[0]

    def checked(self, lod: int, first: int, gists: Gists) -> Gists:
        """Return gists that are finite.

        Raises:
            ModelError: they are not; `node` names the first.
        """
        if self.codec.is_finite(gists):
            return gists
        wrong = ~np.isfinite(gists.rows).all(axis=(1, 2)) | ~np.isfinite(gists.aux).all(axis=1)
        node = f"LOD{lod}:{first + int(np.flatnonzero(wrong)[0])}"
        message = (
            f"gist encoder {self.encoder.name!r} made numbers for {node} that "
            f"{self.codec.dtype!r} cannot hold; check the embedding table or use gist_dtype='f4'"
        )
        raise ModelError(message, encoder=self.encoder.name, lod=lod, node=node)

    def _nothing(self) -> Gists:
        codec = self.codec
        rows = np.empty((0, codec.slots, codec.width), np.float32)
        return Gists(rows, np.empty((0, codec.aux), np.float32))

    def _run(self, lod: int, n: int, encode: Callable[[], Gists]) -> Gists:
        name, codec = self.encoder.name, self.codec
        self.encode_calls[lod] = self.encode_calls.get(lod, 0) + n
        try:
            gists = encode()
        except Exception as error:
            # Its text stays in the cause: it may quote what the memory holds.
            message = f"gist encoder {name!r} failed on LOD{lod} with {type(error).__name__}"
            raise ModelError(message, encoder=name, lod=lod) from error
        if not all(_is_numbers(getattr(gists, part, None)) for part in ("rows", "aux")):
            message = (
                f"gist encoder {name!r} gave a {type(gists).__name__} for LOD{lod}; it must give "
                "Gists whose rows and aux are arrays of floating-point numbers"
            )
            raise ModelError(message, encoder=name, lod=lod)
        shapes = gists.rows.shape, gists.aux.shape
        if shapes != ((n, codec.slots, codec.width), (n, codec.aux)):
            message = (
                f"gist encoder {name!r} gave LOD{lod} arrays of shape {shapes} for {n} nodes; it "
                f"declares {codec.slots} slots of width {codec.width} and {codec.aux} aux numbers"
            )
            raise ModelError(message, encoder=name, lod=lod)
        return gists


def joined(parts: list[Gists]) -> Gists:
    """Return gists of several calls as one; at least one part."""
    if len(parts) == 1:
        return parts[0]
    rows, aux = ([getattr(part, name) for part in parts] for name in ("rows", "aux"))
    return Gists(np.concatenate(rows), np.concatenate(aux))


def _is_numbers(array: object) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind == "f"
