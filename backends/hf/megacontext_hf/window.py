"""A window of slots over one model: what is written where, what it may see, how it turns.

The buffers are the cache's, the forward pass is the model's, the bookkeeping is `SlotTable`'s; this
module joins the three. Decoding (`step`) is the hottest code of the product: while slots are
packed and the new position is the largest, it needs no mask and copies no key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np
import torch

from megacontext_hf.cache import SlotCache
from megacontext_hf.output import TensorOutput
from megacontext_sdk.contracts.model import BlockKV, RowBatch, Window
from megacontext_sdk.contracts.slots import SlotTable
from megacontext_sdk.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from megacontext_hf.anatomy import Anatomy
    from megacontext_hf.cache import CacheShape
    from megacontext_hf.forward import ModelForward
    from megacontext_sdk.contracts.arrays import Indices
    from megacontext_sdk.contracts.model import Want, WindowOutput

__all__ = ["TorchWindow"]


@attrs.frozen(eq=False)
class _Block:
    """Exported rows: base keys and values [L, H, n, d], and the positions the keys stand at."""

    keys: Tensor
    values: Tensor
    base_positions: Indices
    shape: CacheShape


class TorchWindow(Window):
    """Slots of keys and values on the model's device.

    Args:
        forward: the model.
        anatomy: sizes and rotation of its keys.
        capacity: number of slots.
        trained_window: positions stay below it.
        vocab_size: token ids stay below it.
    """

    def __init__(
        self,
        forward: ModelForward,
        anatomy: Anatomy,
        *,
        capacity: int,
        trained_window: int,
        vocab_size: int,
    ) -> None:
        self.capacity = capacity
        self._forward = forward
        self._shape = anatomy.shape
        self._rotation = anatomy.rotation
        self._vocab_size = vocab_size
        self._device = anatomy.shape.device
        self._slots = SlotTable(capacity, trained_window)
        self._has_base = np.zeros(capacity, np.bool_)  # False: the served key is the base key
        self._is_closed = False
        with torch.inference_mode():
            self._cache = SlotCache(anatomy.shape, capacity)
            self._ladder = torch.arange(trained_window, device=self._device)[None]
            self._tokens = torch.arange(vocab_size, device=self._device)

    def __repr__(self) -> str:
        return f"TorchWindow({self.n_live} of {self.capacity} slots)"

    @property
    def n_live(self) -> int:
        """Number of live slots."""
        return self._slots.n_live

    def write(
        self, rows: RowBatch, positions: Indices, slots: Indices, want: Want = "nothing"
    ) -> WindowOutput | None:
        """Run the base over new rows and keep their keys and values; one forward pass.

        A pass that fails frees its slots.

        Raises:
            ModelError: slots, positions or rows that do not fit, or a closed window.
        """
        self._require_open()
        self._slots.check(rows, positions, slots)
        self._check_rows(rows)
        if rows.n_rows == 0:
            return None
        self._slots.write(slots, positions)
        self._has_base[slots] = False
        try:
            with torch.inference_mode():
                result = self._run(rows, np.asarray(positions), np.asarray(slots), want)
        except BaseException:
            self._slots.release(slots)
            raise
        return None if result is None else TensorOutput(result)

    def step(self, token_id: int, position: int, slot: int) -> WindowOutput:
        """Decode one token at the largest position into the next slot; returns logits [vocab].

        Raises:
            ModelError: a token, slot or position out of range, or a closed window.
        """
        if not 0 <= token_id < self._vocab_size:
            raise self._no_token(token_id)
        if self._is_closed or not self._slots.append(slot, position):
            return self._masked_step(token_id, position, slot)
        self._has_base[slot] = False
        try:
            with torch.inference_mode():
                x = self._forward.embed(self._tokens[token_id : token_id + 1])[None]
                self._cache.aim(slice(slot, slot + 1), 1, slot + 1)
                place = self._ladder[:, position : position + 1]
                logits = self._forward.logits(x, place, self._cache, None, None)
        except BaseException:
            self._slots.release(np.array([slot]))
            raise
        return TensorOutput(logits[0])

    def release(self, slots: Indices) -> None:
        """Free slots; nothing can attend to them afterwards."""
        self._require_open()
        self._slots.release(slots)

    def relocate(self, source: Indices, target: Indices) -> None:
        """Move rows bit for bit from live slots to free slots; sources are freed.

        Raises:
            ModelError: a source that is free, or a target that is live.
        """
        self._require_open()
        self._slots.relocate(source, target)
        self._has_base[target] = self._has_base[source]
        old, new = self._place(source), self._place(target)
        with torch.inference_mode():
            for buffer in self._buffers():
                buffer[:, :, :, new] = buffer[:, :, :, old].clone()

    def move(self, slots: Indices, positions: Indices) -> None:
        """Give live rows new positions by re-rotating their keys from the stored base angle.

        Raises:
            ModelError: a free slot, or a position outside the trained window.
        """
        self._require_open()
        self._slots.move(slots, positions)
        if not len(slots):
            return
        if 2 * len(slots) > self._slots.end == self._slots.n_live:
            # Turning a whole prefix needs no gather; a row that did not move stays as it is.
            slots = np.arange(self._slots.end)
        with torch.inference_mode():
            self._turn(slots)

    def export(self, slots: Indices) -> BlockKV:
        """Copy rows out, without freeing them.

        Raises:
            ModelError: a free slot.
        """
        self._require_open()
        self._slots.check_live(slots)
        with torch.inference_mode():
            self._settle(slots)
            place = self._place(slots)
            keys = self._cache.base_keys[:, 0, :, place].clone()
            values = self._cache.values[:, 0, :, place].clone()
        base = self._slots.base_positions[slots]
        return BlockKV(
            n_rows=len(slots),
            n_bytes=keys.nbytes + values.nbytes,
            payload=_Block(keys, values, base, self._shape),
        )

    def restore(self, block: BlockKV, slots: Indices, positions: Indices) -> None:
        """Put exported rows back at other slots and positions (re-rotated).

        Raises:
            ModelError: a block of another model, or slots and positions that do not fit.
        """
        self._require_open()
        payload = block.payload
        if not isinstance(payload, _Block) or payload.shape != self._shape:
            raise ModelError(
                "this block of keys and values was exported by another model; compute it anew"
            )
        self._slots.check_places(slots, positions)
        if len(slots) != block.n_rows:
            raise ModelError(f"{block.n_rows} rows were given {len(slots)} slots; give each one")
        self._slots.write(slots, positions)
        self._slots.base_positions[slots] = payload.base_positions
        self._has_base[slots] = True
        place = self._place(slots)
        with torch.inference_mode():
            self._cache.base_keys[:, 0, :, place] = payload.keys
            self._cache.values[:, 0, :, place] = payload.values
            self._turn(slots)

    def close(self) -> None:
        """Free the buffers; idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._slots = SlotTable(0, 0)
            self._cache = SlotCache(self._shape, 0)

    def _masked_step(self, token_id: int, position: int, slot: int) -> WindowOutput:
        """Write one token anywhere; what `step` falls back to."""
        rows = _token_rows(token_id)
        output = self.write(rows, np.array([position]), np.array([slot]), "last")
        if output is None:
            raise ModelError("a decode step returned no logits")
        return output

    def _run(self, rows: RowBatch, positions: Indices, slots: Indices, want: Want) -> Tensor | None:
        x = self._forward.embed_rows(rows)
        is_ladder = len(slots) == self._slots.end and _is_range(slots, 0) and _rises(positions)
        is_packed = self._slots.n_live == self._slots.end
        live = np.arange(self._slots.end) if is_packed else self._slots.live_slots()
        mask = None if is_ladder else self._mask(positions, live)
        visible = self._slots.end if is_packed else self._tensor(live)
        self._cache.aim(self._place(slots), len(slots), visible)
        place = self._tensor(positions)[None]
        if want in {"nothing", "hidden"}:
            hidden = self._forward.hidden(x, place, self._cache, mask)
            return hidden[0] if want == "hidden" else None
        row = int(np.argmax(positions)) if want == "last" else None
        logits = self._forward.logits(x, place, self._cache, mask, row)
        return logits[0] if want == "last" else logits

    def _mask(self, positions: Indices, live: Indices) -> Tensor:
        """Return the additive mask [1, 1, n, m]: row i sees live slot j if p_j <= p_i."""
        hidden = self._slots.positions[live][None, :] > positions[:, None]
        mask = torch.zeros(hidden.shape, dtype=self._shape.dtype, device=self._device)
        return mask.masked_fill_(self._tensor(hidden), -torch.inf)[None, None]

    def _settle(self, slots: Indices) -> None:
        """Make sure these rows have a base key: until first turned, the served key is it."""
        missing = np.asarray(slots)[~self._has_base[slots]]
        if len(missing):
            place = self._place(missing)
            self._cache.base_keys[:, :, :, place] = self._cache.keys[:, :, :, place]
            self._has_base[missing] = True

    def _turn(self, slots: Indices) -> None:
        """Compute the served keys of live slots from their base keys."""
        self._settle(slots)
        place = self._place(slots)
        base = self._cache.base_keys[:, 0, :, place]
        served = self._cache.keys[:, 0, :, place]  # a view for a slice, a copy otherwise
        source = self._tensor(self._slots.base_positions[slots])
        target = self._tensor(self._slots.positions[slots])
        self._rotation.rotate(base, source, target, served)
        if not isinstance(place, slice):
            self._cache.keys[:, 0, :, place] = served

    def _place(self, slots: Indices) -> slice | Tensor:
        """Return slots as something that indexes a buffer: a slice where they are consecutive."""
        slots = np.asarray(slots)
        if len(slots) and _is_range(slots, int(slots[0])):
            return slice(int(slots[0]), int(slots[-1]) + 1)
        return self._tensor(slots)

    def _tensor(self, array: Indices | np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._cache.keys, self._cache.base_keys, self._cache.values

    def _check_rows(self, rows: RowBatch) -> None:
        ids = rows.token_ids
        if rows.n_rows and not -1 <= ids.min() <= ids.max() < self._vocab_size:
            raise self._no_token(int(ids.max() if ids.max() >= self._vocab_size else ids.min()))
        n_vectors = int(np.count_nonzero(ids < 0))
        if n_vectors != len(rows.vectors):
            raise ModelError(
                f"{n_vectors} rows are vectors, but {len(rows.vectors)} vectors were given",
                n_rows=n_vectors,
                n_vectors=len(rows.vectors),
            )

    def _require_open(self) -> None:
        if self._is_closed:
            raise ModelError("this window is closed; open another one with open_window")

    def _no_token(self, token_id: int) -> ModelError:
        return ModelError(
            f"token {token_id} is outside the vocabulary of {self._vocab_size}; encode the text "
            "with this model's tokenizer",
            token_id=token_id,
        )


def _token_rows(token_id: int) -> RowBatch:
    return RowBatch(np.array([token_id], np.int32), np.empty((0, 0), np.float32))


def _is_range(slots: Indices, start: int) -> bool:
    """Whether slots are start, start + 1, ..."""
    return bool((slots == np.arange(start, start + len(slots))).all())


def _rises(positions: Indices) -> bool:
    return bool((np.diff(positions) > 0).all())
