"""The model contract: tokenizer, embeddings, a slot-addressed window of keys and values, sampling.

An adapter wraps one frozen base model. Framework tensors stay inside it: what crosses is numpy,
except `WindowOutput`, which the adapter's own sampler may read without a copy.
Attention goes by position, not by slot order; that is what makes a swap cost only its own rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, Self

import attrs

from megacontext_sdk.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from megacontext_sdk.contracts.arrays import Floats, Ids, Indices

__all__ = [
    "BlockKV",
    "Detokenizer",
    "ModelAdapter",
    "ModelInfo",
    "RowBatch",
    "Sampler",
    "SamplingOptions",
    "Tokenizer",
    "Want",
    "Window",
    "WindowOutput",
]

Want = Literal["nothing", "last", "all", "hidden"]
"""What `Window.write` returns: nothing, logits of the row with the largest position, all logits in
row order, or final hidden states in row order."""


@attrs.frozen(kw_only=True)
class ModelInfo:
    """What core must know about a base model.

    Attributes:
        name: what the user asked for.
        fingerprint: hex digest of weights, config and embedding table.
        tokenizer_fingerprint: hex digest of the tokenizer's definition.
        trained_window: longest row count the model was trained on; positions stay below it.
        rotary_dim: dimensions of a head that RoPE rotates (0: no rotary positions).
        rope_theta: rotary base.
        device, dtype: where and how the model computes, as text.
        bos_id: token that opens a history, or None.
        eos_ids: tokens that end a reply.
    """

    name: str
    fingerprint: str
    tokenizer_fingerprint: str
    hidden_size: int
    vocab_size: int
    n_layers: int
    trained_window: int
    rotary_dim: int
    rope_theta: float
    device: str
    dtype: str
    bos_id: int | None
    eos_ids: tuple[int, ...]


class Detokenizer(ABC):
    """Turns one token at a time into text, holding back incomplete characters."""

    @abstractmethod
    def push(self, token_id: int) -> str:
        """Take a token, return the text that became final (often empty for half a character)."""

    @abstractmethod
    def flush(self) -> str:
        """Return what was held back, with replacement characters for incomplete ones."""


class Tokenizer(ABC):
    """Text to token ids and back. May be shared between threads."""

    @abstractmethod
    def encode(self, text: str, *, special: bool = False) -> Ids:
        """Return int32[n] without BOS or EOS added.

        Args:
            text: any text.
            special: read markers such as `<|end|>` as the special tokens they name. Off for
                content, so that content can never imitate the chat format.
        """

    @abstractmethod
    def decode(self, token_ids: Ids, *, special: bool = True) -> str:
        """Return the text of the ids; `special=False` leaves special tokens out."""

    @abstractmethod
    def detokenizer(self) -> Detokenizer:
        """Return a fresh incremental detokenizer (special tokens give no text)."""

    @abstractmethod
    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> str | None:
        """Render chat messages with the model's template, or return None if it has none.

        Raises:
            ModelError: the template refuses these messages (a role it does not know, say).
        """


@attrs.frozen(kw_only=True)
class SamplingOptions:
    """How the next token is chosen; names and meaning are transformers'. 0.0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


class WindowOutput(ABC):
    """Logits or hidden states of one `write`, still in the adapter's framework."""

    @abstractmethod
    def numpy(self) -> Floats:
        """Return float32: [vocab] for "last", [n, vocab] for "all", [n, d] for "hidden"."""


class Sampler(ABC):
    """Chooses next tokens for one reply. Not shared between threads."""

    @abstractmethod
    def sample(self, output: WindowOutput) -> int:
        """Choose a token from the "last" logits of this adapter's window."""


@attrs.frozen(eq=False)
class BlockKV:
    """Keys and values of some rows, taken out of a window; opaque to core.

    Attributes:
        n_rows: how many rows.
        n_bytes: memory it holds, for the bounded cache.
        payload: framework tensors only the adapter reads; keys relative to no position.
    """

    n_rows: int
    n_bytes: int
    payload: object


@attrs.frozen(eq=False)
class RowBatch:
    """Rows to feed: token ids, and vectors where an id is -1.

    Attributes:
        token_ids: int32[n]; -1 marks a row that is an embedding vector.
        vectors: float32[m, d], one per -1, in row order.
    """

    token_ids: Ids
    vectors: Floats

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.token_ids)


class Window(ABC):
    """A fixed number of slots that hold keys and values of a frozen model.

    Slot order means nothing: a row sees every live slot whose position is at most its own. Slots
    are named by the caller, who keeps them packed: live slots are always `[0, n_live)`. Not shared
    between threads.
    """

    capacity: int

    @property
    @abstractmethod
    def n_live(self) -> int:
        """Number of live slots."""

    @abstractmethod
    def write(
        self, rows: RowBatch, positions: Indices, slots: Indices, want: Want = "nothing"
    ) -> WindowOutput | None:
        """Run the base over new rows and keep their keys and values; one forward pass.

        Each row attends to every live slot and every row of this call with a position at most its
        own. Writing to a live slot overwrites it (that is how stale rows are repaired).

        Args:
            rows: n token or vector rows.
            positions: int64[n], distinct.
            slots: int64[n], distinct, each live or the next free ones.
            want: what to return.

        Raises:
            ModelError: a slot outside the capacity, or a position outside the trained window.
        """

    @abstractmethod
    def step(self, token_id: int, position: int, slot: int) -> WindowOutput:
        """Decode: `write` one token at the largest position into slot `n_live`, "last" wanted."""

    @abstractmethod
    def release(self, slots: Indices) -> None:
        """Free slots; nothing can attend to them afterwards. The caller packs with `relocate`."""

    @abstractmethod
    def relocate(self, source: Indices, target: Indices) -> None:
        """Move rows bit for bit from live to free slots; positions stay; sources are freed."""

    @abstractmethod
    def move(self, slots: Indices, positions: Indices) -> None:
        """Give live rows new positions by re-rotating their keys from the stored base angle."""

    @abstractmethod
    def export(self, slots: Indices) -> BlockKV:
        """Copy rows out, without freeing them."""

    @abstractmethod
    def restore(self, block: BlockKV, slots: Indices, positions: Indices) -> None:
        """Put exported rows back at other slots and positions (re-rotated)."""

    @abstractmethod
    def close(self) -> None:
        """Free the buffers; idempotent."""


class ModelAdapter(ABC):
    """One frozen base model. Opened by its factory; `close` frees it."""

    @property
    @abstractmethod
    def info(self) -> ModelInfo:
        """What core must know about the model."""

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""

    @abstractmethod
    def embed(self, token_ids: Ids) -> Floats:
        """Return input-embedding rows, float32[n, d]."""

    @abstractmethod
    def embedding_table(self) -> Floats:
        """Return the whole input-embedding table, float32[vocab, d], read-only.

        A view where the model already holds float32 on the CPU.
        """

    @abstractmethod
    def hidden_states(self, token_ids: Ids, left_context: Ids) -> Floats:
        """Return final hidden states of `token_ids` read after `left_context`, float32[n, d]."""

    def torch_module(self) -> object:
        """Return the frozen model itself, for encoders that run its layers in torch.

        It is a causal language model of transformers in evaluation mode. Whoever asks for it reads
        it and changes nothing: no parameter, no hook, no flag.

        Raises:
            ModelError: this adapter holds no such model.
        """
        raise ModelError(
            f"the model {self.info.name!r} runs in {type(self).__name__}, which holds no torch "
            'module; open a model whose adapter does, such as "hf:<folder>", or take another '
            "encoder",
            adapter=type(self).__name__,
        )

    @abstractmethod
    def open_window(self, capacity: int) -> Window:
        """Return an empty window of `capacity` slots.

        Raises:
            ModelError: the model's attention cannot be addressed by slots (no rotary positions).
        """

    @abstractmethod
    def sampler(self, options: SamplingOptions) -> Sampler:
        """Return a sampler; its random generator belongs to it alone."""

    @abstractmethod
    def close(self) -> None:
        """Free the model; idempotent."""

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()
