"""A tiny deterministic model in numpy, for tests and for a first look without torch.

It has real attention over addressed slots with rotary positions, so everything the window contract
promises can be checked on it. It is no language model: its weights are random numbers from a fixed
seed, its vocabulary is bytes, and what it says means nothing.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import attrs
import numpy as np

from megacontext_sdk.builtin.array_sampler import ArrayOutput, ArraySampler
from megacontext_sdk.builtin.byte_tokenizer import ByteTokenizer
from megacontext_sdk.contracts.arrays import readonly
from megacontext_sdk.contracts.model import (
    BlockKV,
    ModelAdapter,
    ModelInfo,
    RowBatch,
    Window,
)
from megacontext_sdk.contracts.slots import SlotTable
from megacontext_sdk.errors import ModelError

if TYPE_CHECKING:
    from megacontext_sdk.contracts.arrays import Bools, Floats, Ids, Indices
    from megacontext_sdk.contracts.model import Sampler, SamplingOptions, Want, WindowOutput

__all__ = ["EchoModel", "EchoWindow"]

_LAYERS, _HEADS, _HEAD_DIM = 2, 2, 16
_WIDTH = _HEADS * _HEAD_DIM
_FREQUENCIES = 10_000.0 ** (-np.arange(0, _HEAD_DIM, 2) / _HEAD_DIM)  # float64[head_dim / 2]
_UNPRINTABLE = -20.0
"""Logit bias of what a reader could not read."""


@attrs.frozen(eq=False)
class _Weights:
    """float32: table and head [V, d], projections [layers, 4, d, d] (q, k, v, out), bias [V]."""

    table: Floats
    projections: Floats
    head: Floats
    bias: Floats


class EchoModel(ModelAdapter):
    """A two-layer attention network with fixed random weights over bytes.

    May be shared between threads; its windows may not.

    Args:
        name: ignored but for `info.name`; there is one echo model.
        trained_window: longest row count, as text or number.
        seed: of the weights.

    Example:
        >>> with EchoModel() as model:
        ...     window = model.open_window(8)
        ...     model.tokenizer.decode(model.tokenizer.encode("héllo"))
        'héllo'
    """

    def __init__(self, name: str = "", *, trained_window: int | str = 1024, seed: int = 7) -> None:
        self._tokenizer = ByteTokenizer()
        self._weights = _draw_weights(self._tokenizer.vocab_size, seed)
        digest = hashlib.sha256(self._weights.table.tobytes())
        digest.update(self._weights.projections.tobytes() + self._weights.head.tobytes())
        self._info = ModelInfo(
            name=name or "echo",
            fingerprint=digest.hexdigest(),
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            hidden_size=_WIDTH,
            vocab_size=self._tokenizer.vocab_size,
            n_layers=_LAYERS,
            trained_window=int(trained_window),
            rotary_dim=_HEAD_DIM,
            rope_theta=10_000.0,
            device="cpu",
            dtype="float32",
            bos_id=self._tokenizer.bos_id,
            eos_ids=(self._tokenizer.end_id,),
        )

    def __repr__(self) -> str:
        return "EchoModel()"

    @property
    def info(self) -> ModelInfo:
        """What core must know about the model."""
        return self._info

    @property
    def tokenizer(self) -> ByteTokenizer:
        """The byte tokenizer."""
        return self._tokenizer

    def embed(self, token_ids: Ids) -> Floats:
        """Return input-embedding rows, float32[n, d]."""
        rows: Floats = self._weights.table[np.asarray(token_ids, dtype=np.int64)]
        return rows

    def embedding_table(self) -> Floats:
        """Return the whole table, float32[vocab, d], a read-only view."""
        return readonly(self._weights.table)  # type: ignore[return-value]

    def hidden_states(self, token_ids: Ids, left_context: Ids) -> Floats:
        """Return final hidden states of `token_ids` after `left_context`, float32[n, d].

        Raises:
            ModelError: both together are longer than the trained window.
        """
        ids = np.concatenate([left_context, token_ids]).astype(np.int32)
        window = self.open_window(max(len(ids), 1))
        rows = RowBatch(token_ids=ids, vectors=np.empty((0, _WIDTH), np.float32))
        places = np.arange(len(ids), dtype=np.int64)
        output = window.write(rows, places, places, "hidden")
        hidden = np.empty((0, _WIDTH), np.float32) if output is None else output.numpy()
        return hidden[len(left_context) :]

    def open_window(self, capacity: int) -> EchoWindow:
        """Return an empty window of `capacity` slots."""
        return EchoWindow(self._weights, capacity, self._info.trained_window)

    def sampler(self, options: SamplingOptions) -> Sampler:
        """Return a sampler with a random generator of its own."""
        return ArraySampler(options)

    def close(self) -> None:
        """Do nothing: numpy frees the arrays."""


class EchoWindow(Window):
    """Slots of keys and values in numpy, float32[layers, heads, capacity, head_dim]."""

    def __init__(self, weights: _Weights, capacity: int, trained_window: int) -> None:
        self.capacity = capacity
        self._weights = weights
        self._slots = SlotTable(capacity, trained_window)
        shape = (_LAYERS, _HEADS, capacity, _HEAD_DIM)
        self._base_keys = np.zeros(shape, np.float32)  # as written, at slots.base_positions
        self._keys = np.zeros(shape, np.float32)  # rotated to slots.positions
        self._values = np.zeros(shape, np.float32)

    @property
    def n_live(self) -> int:
        """Number of live slots."""
        return self._slots.n_live

    def write(
        self, rows: RowBatch, positions: Indices, slots: Indices, want: Want = "nothing"
    ) -> WindowOutput | None:
        """Run the network over new rows and keep their keys and values.

        Raises:
            ModelError: slots, positions or rows that do not fit the contract.
        """
        self._slots.check(rows, positions, slots)
        if rows.n_rows == 0:
            return None
        self._slots.write(slots, positions)
        live = self._slots.live_slots()
        visible = self._slots.positions[live][None, :] <= np.asarray(positions)[:, None]
        hidden = self._run(_embed_rows(rows, self._weights.table), positions, slots, live, visible)
        if want == "last":
            hidden = hidden[np.argmax(positions)]
        if want == "nothing":
            return None
        return ArrayOutput(hidden if want == "hidden" else self._logits(hidden))

    def _run(
        self, x: Floats, positions: Indices, slots: Indices, live: Indices, visible: Bools
    ) -> Floats:
        """Return final hidden states float32[n, d]; keys and values land in their slots."""
        for layer in range(_LAYERS):
            query, key, value, out = self._weights.projections[layer]
            normed = _normed(x)
            keys = _rotate(_heads(normed @ key), positions)
            self._base_keys[layer][:, slots] = keys
            self._keys[layer][:, slots] = keys
            self._values[layer][:, slots] = _heads(normed @ value)
            queries = _rotate(_heads(normed @ query), positions)
            mixed = _attend(
                queries, self._keys[layer][:, live], self._values[layer][:, live], visible
            )
            x = x + mixed @ out
        return _normed(x)

    def _logits(self, hidden: Floats) -> Floats:
        logits: Floats = hidden @ self._weights.head.T + self._weights.bias
        return logits

    def step(self, token_id: int, position: int, slot: int) -> WindowOutput:
        """Write one token and return its logits, float32[vocab]."""
        rows = RowBatch(
            token_ids=np.array([token_id], np.int32), vectors=np.empty((0, _WIDTH), np.float32)
        )
        output = self.write(rows, np.array([position]), np.array([slot]), "last")
        if output is None:
            raise ModelError("a decode step returned no logits")
        return output

    def release(self, slots: Indices) -> None:
        """Free slots."""
        self._slots.release(slots)

    def relocate(self, source: Indices, target: Indices) -> None:
        """Move rows bit for bit; positions stay; sources are freed."""
        self._slots.relocate(source, target)
        for buffer in (self._base_keys, self._keys, self._values):
            buffer[:, :, target] = buffer[:, :, source]

    def move(self, slots: Indices, positions: Indices) -> None:
        """Give live rows new positions by re-rotating their keys from the stored base angle."""
        self._slots.move(slots, positions)
        delta = self._slots.positions[slots] - self._slots.base_positions[slots]
        self._keys[:, :, slots] = _rotate(self._base_keys[:, :, slots], delta)

    def export(self, slots: Indices) -> BlockKV:
        """Copy rows out, keys turned back to position 0."""
        self._slots.check_live(slots)
        keys = _rotate(self._base_keys[:, :, slots], -self._slots.base_positions[slots])
        values = self._values[:, :, slots].copy()
        return BlockKV(
            n_rows=len(slots), n_bytes=keys.nbytes + values.nbytes, payload=(keys, values)
        )

    def restore(self, block: BlockKV, slots: Indices, positions: Indices) -> None:
        """Put exported rows back at other slots and positions."""
        payload = block.payload
        if not isinstance(payload, tuple):
            raise ModelError("this block of keys and values was exported by another adapter")
        self._slots.check_places(slots, positions)
        keys, values = payload
        self._slots.write(slots, positions)
        rotated = _rotate(keys, positions)
        self._base_keys[:, :, slots] = rotated
        self._keys[:, :, slots] = rotated
        self._values[:, :, slots] = values

    def close(self) -> None:
        """Do nothing: numpy frees the arrays."""


def _draw_weights(vocab_size: int, seed: int) -> _Weights:
    random = np.random.default_rng(seed)
    table, head = random.standard_normal((2, vocab_size, _WIDTH)).astype(np.float32)
    projections = random.standard_normal((_LAYERS, 4, _WIDTH, _WIDTH)) * 2 * _WIDTH**-0.5
    bias = np.full(vocab_size, _UNPRINTABLE, np.float32)
    bias[list(b"abcdefghijklmnopqrstuvwxyz ,.")] = 0.0
    bias[ByteTokenizer.end_id] = 0.0
    return _Weights(table, projections.astype(np.float32), head, bias)


def _embed_rows(rows: RowBatch, table: Floats) -> Floats:
    """Return float32[n, d]: table rows of the ids, vectors where the id is -1."""
    x = table[np.maximum(rows.token_ids, 0)]
    x[rows.token_ids < 0] = rows.vectors
    return x


def _normed(x: Floats) -> Floats:
    result: Floats = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(1e-6))
    return result


def _heads(x: Floats) -> Floats:
    """float32[n, d] -> [heads, n, head_dim]."""
    return x.reshape(len(x), _HEADS, _HEAD_DIM).transpose(1, 0, 2)


def _rotate(x: Floats, positions: Indices) -> Floats:
    """Rotate float32[..., n, head_dim] by positions int64[n], angles in float64."""
    angles = np.asarray(positions, np.float64)[:, None] * _FREQUENCIES
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attend(queries: Floats, keys: Floats, values: Floats, visible: Bools) -> Floats:
    """Return float32[n, d] for queries [heads, n, h] over keys and values [heads, m, h]."""
    scores = queries @ keys.transpose(0, 2, 1) * np.float32(_HEAD_DIM**-0.5)
    scores = np.where(visible, scores, -np.inf)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = powers / powers.sum(axis=-1, keepdims=True) @ values
    result: Floats = mixed.transpose(1, 0, 2).reshape(-1, _WIDTH).astype(np.float32)
    return result
