"""What every gist encoder must keep, as a pytest class to inherit from.

    class TestAcme(GistEncoderConformance):
        make = staticmethod(AcmeEncoder)

Checks the contract, not quality: whether gists help a model is measured elsewhere.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.memory_storage import InMemoryStorage
from megacontext_sdk.contracts.gist import Blocks, GistEncoder, Gists
from megacontext_sdk.contracts.model import ModelInfo
from megacontext_sdk.contracts.storage import Header
from megacontext_sdk.errors import MegaContextError, ModelError, ModelMismatchError
from megacontext_sdk.memory.gist_rows import RowCodec
from megacontext_sdk.memory.journal import Journal, MessageRecord
from megacontext_sdk.memory.lod import BLOCK_SIZE
from megacontext_sdk.memory.tree import MegaContextTree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from megacontext_sdk.contracts.arrays import Floats, Ids
    from megacontext_sdk.contracts.gist import GistServices

__all__ = ["GistEncoderConformance", "TableServices", "blocks_of"]

# Norm of a gist over the mean norm of token rows (specification 4.1).
_NORM_RATIO = (0.5, 2.0)


class TableServices:
    """Services over a random embedding table; hidden states are the embedding rows.

    Args:
        vocab_size, width: shape of the table.
        seed: of the table, which also names the base.
    """

    def __init__(self, vocab_size: int = 512, width: int = 32, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.table = random.normal(0, 0.05, (vocab_size, width)).astype(np.float32)
        self.info = ModelInfo(
            name=f"table-{seed}",
            fingerprint=f"{seed:064x}",
            tokenizer_fingerprint=f"{vocab_size:064x}",
            hidden_size=width,
            vocab_size=vocab_size,
            n_layers=0,
            trained_window=1024,
            rotary_dim=0,
            rope_theta=10_000.0,
            device="cpu",
            dtype="float32",
            bos_id=None,
            eos_ids=(),
        )

    def embedding_table(self) -> Floats:
        """Return the table, float32[vocab, d]."""
        return self.table

    def hidden_states(self, token_ids: Ids, left_context: Ids) -> Floats:
        """Return the rows of the ids, float32[n, d]; the context changes nothing here."""
        del left_context
        return self.table[token_ids]

    def torch_module(self) -> object:
        """Refuse: a table is no model.

        Raises:
            ModelError: always.
        """
        raise ModelError(f"the services of {self.info.name!r} hold no torch module")


def blocks_of(token_ids: Ids, first: int, stop: int, left_tokens: int) -> Blocks:
    """Return blocks `[first, stop)` of a history int32[N, 32] as an encoder is handed them."""
    at = first * BLOCK_SIZE
    left = token_ids.reshape(-1)[max(0, at - left_tokens) : at]
    return Blocks(token_ids[first:stop], first, left)


class _Recording(GistEncoder):
    """Hands everything on to an encoder and keeps what it was handed."""

    def __init__(self, inner: GistEncoder) -> None:
        self.name, self.gist_slots, self.aux_size = inner.name, inner.gist_slots, inner.aux_size
        self.left_tokens = inner.left_tokens
        self.inner = inner
        self.seen: list[Blocks] = []

    def fingerprint(self, info: ModelInfo) -> str:
        """Return the other's."""
        return self.inner.fingerprint(info)

    def encode_blocks(self, blocks: Blocks, services: GistServices) -> Gists:
        """Note the blocks."""
        self.seen.append(blocks)
        return self.inner.encode_blocks(blocks, services)

    def encode_gists(self, lod: int, children: Gists, services: GistServices) -> Gists:
        """Hand on."""
        return self.inner.encode_gists(lod, children, services)


class GistEncoderConformance:
    """Standard tests of a `GistEncoder`; set `make`, and `make_services` for a real base."""

    make: Callable[[], GistEncoder]
    make_services: Callable[[], GistServices] = staticmethod(TableServices)
    is_bitwise = True
    """Whether batching may not change a single bit; else float16 rounding is allowed."""

    @pytest.fixture
    def services(self) -> GistServices:
        """Return the base the encoder works for."""
        return self.make_services()

    @pytest.fixture
    def history(self, services: GistServices) -> Ids:
        """Return a history of 64 blocks of random tokens, int32[64, 32]."""
        random = np.random.default_rng(7)
        shape = (2 * BLOCK_SIZE, BLOCK_SIZE)
        return random.integers(0, services.info.vocab_size, shape).astype(np.int32)

    @pytest.fixture
    def blocks(self, history: Ids) -> Blocks:
        """Return all blocks of the history; nothing stands left of them."""
        return blocks_of(history, 0, len(history), 0)

    @pytest.fixture
    def encoder(self) -> GistEncoder:
        """Return a fresh encoder."""
        return self.make()

    def test_gists_have_the_declared_shape_and_type(
        self, encoder: GistEncoder, services: GistServices, blocks: Blocks
    ) -> None:
        """Rows are float32[n, S, d], aux float32[n, A], at every level."""
        for gists, n in self._levels(encoder, services, blocks):
            shape = (n, encoder.gist_slots, services.info.hidden_size)
            assert shape == gists.rows.shape, "rows must be [n, gist_slots, hidden_size]"
            assert (n, encoder.aux_size) == gists.aux.shape, "aux must be [n, aux_size]"
            assert np.float32 == gists.rows.dtype, "rows must be float32"
            assert np.float32 == gists.aux.dtype, "aux must be float32"

    def test_gists_are_finite_also_as_float16(
        self, encoder: GistEncoder, services: GistServices, blocks: Blocks
    ) -> None:
        """Stored rows are float16 by default, so numbers must fit."""
        for gists, _ in self._levels(encoder, services, blocks):
            assert RowCodec.is_finite(self._stored(encoder, gists)), "a gist is not finite"

    def test_gists_are_as_large_as_token_rows(
        self, encoder: GistEncoder, services: GistServices, blocks: Blocks
    ) -> None:
        """A gist stands among token rows, so its norm is within half and twice theirs."""
        usual = np.linalg.norm(services.embedding_table(), axis=1).mean()
        for gists, _ in self._levels(encoder, services, blocks):
            ratio = np.linalg.norm(gists.rows, axis=-1) / usual
            low, high = _NORM_RATIO
            assert low <= ratio.min() <= ratio.max() <= high, "norm ratio is outside [0.5, 2]"

    def test_a_batch_equals_single_blocks(
        self, encoder: GistEncoder, services: GistServices, history: Ids
    ) -> None:
        """How blocks are batched must not show in their gists."""
        whole = self._encoded(encoder, services, history, (0, len(history)))
        single = self._encoded(encoder, services, history, range(len(history) + 1))
        self._assert_same(single.rows, whole.rows)
        self._assert_same(single.aux, whole.aux)

    def test_a_token_beyond_the_left_context_changes_nothing(
        self, encoder: GistEncoder, services: GistServices
    ) -> None:
        """Forgetting a token makes new gists as far as `left_tokens` says, and no others."""
        n_touched = -(-encoder.left_tokens // BLOCK_SIZE) + 1
        before = self._long_history(services, n_touched + 3)
        after = before.copy()
        after[0, -1] = (after[0, -1] + 1) % services.info.vocab_size
        whole = (0, len(before))
        kept = [
            self._encoded(encoder, services, ids, whole).rows[n_touched:] for ids in (before, after)
        ]
        self._assert_same(*kept)

    def test_a_later_token_changes_nothing(
        self, encoder: GistEncoder, services: GistServices, history: Ids
    ) -> None:
        """A gist knows nothing of what comes behind its span, also within one batch."""
        after = history.copy()
        after[-1] = (after[-1] + 1) % services.info.vocab_size
        whole = (0, len(history))
        kept = [self._encoded(encoder, services, ids, whole).rows[:-1] for ids in (history, after)]
        self._assert_same(*kept)

    def test_gists_do_not_depend_on_how_appends_were_cut(
        self, services: GistServices, history: Ids
    ) -> None:
        """Not even where a gist depends on what stands left of it."""
        levels = [self._tree_gists(self.make(), services, history, cuts) for cuts in self._cuts()]
        for other in levels[1:]:
            for first, second in zip(levels[0], other, strict=True):
                self._assert_same(first, second)

    def test_the_encoder_gets_exactly_the_left_tokens_it_asks_for(
        self, services: GistServices, history: Ids
    ) -> None:
        """However appends were cut, and no more than there are."""
        encoder = self.make()
        for cuts in self._cuts():
            recording = _Recording(encoder)
            self._tree_gists(recording, services, history, cuts)
            for seen in recording.seen:
                stop = seen.first + len(seen)
                due = blocks_of(history, seen.first, stop, encoder.left_tokens)
                np.testing.assert_array_equal(due.token_ids, seen.token_ids)
                np.testing.assert_array_equal(due.left, seen.left)

    def test_what_it_declares_makes_sense(self, encoder: GistEncoder) -> None:
        """Core reads these before it encodes anything."""
        for name, least in (("gist_slots", 1), ("aux_size", 0), ("left_tokens", 0)):
            value = getattr(encoder, name)
            assert type(value) is int, f"{name} must be a whole number"
            assert value >= least, f"{name} must be at least {least}"
        assert type(encoder.runs_behind) is bool, "runs_behind must be True or False"
        assert encoder.name, "an encoder has a name"

    def test_a_batch_equals_single_sibling_groups(
        self, encoder: GistEncoder, services: GistServices, blocks: Blocks
    ) -> None:
        """How parents are batched must not show either."""
        children = self._stored(encoder, encoder.encode_blocks(blocks, services))
        whole = encoder.encode_gists(2, children, services)
        halves = [
            encoder.encode_gists(2, Gists(children.rows[part], children.aux[part]), services)
            for part in (slice(0, BLOCK_SIZE), slice(BLOCK_SIZE, None))
        ]
        self._assert_same(np.concatenate([half.rows for half in halves]), whole.rows)

    def test_a_fresh_encoder_gives_the_same_bits(
        self, services: GistServices, blocks: Blocks
    ) -> None:
        """Gists depend on text and fingerprint only, not on what was encoded before."""
        one, two = self.make(), self.make()
        two.encode_blocks(attrs.evolve(blocks, token_ids=blocks.token_ids[::-1].copy()), services)
        first, second = one.encode_blocks(blocks, services), two.encode_blocks(blocks, services)
        np.testing.assert_array_equal(first.rows, second.rows)
        assert one.fingerprint(services.info) == two.fingerprint(services.info)

    def test_no_blocks_give_no_gists(self, encoder: GistEncoder, services: GistServices) -> None:
        """An empty batch is legal."""
        nothing = np.empty((0, BLOCK_SIZE), np.int32)
        gists = encoder.encode_blocks(Blocks(nothing, 0, nothing.reshape(-1)), services)
        assert 0 == len(gists.rows) == len(gists.aux)

    def test_encoding_leaves_its_input_alone(
        self, encoder: GistEncoder, services: GistServices, blocks: Blocks
    ) -> None:
        """Arrays handed in may be read-only views of a store."""
        children = self._stored(encoder, encoder.encode_blocks(blocks, services))
        for array in (blocks.token_ids, blocks.left, children.rows, children.aux):
            array.flags.writeable = False
        encoder.encode_blocks(blocks, services)
        encoder.encode_gists(2, children, services)

    def test_a_partial_block_is_refused(
        self, encoder: GistEncoder, services: GistServices, blocks: Blocks
    ) -> None:
        """Partial blocks stay tokens; nothing pads them."""
        with pytest.raises(MegaContextError):
            encoder.encode_blocks(
                attrs.evolve(blocks, token_ids=blocks.token_ids[:, :-1]), services
            )

    def test_a_token_outside_the_vocabulary_is_refused(
        self, encoder: GistEncoder, services: GistServices, blocks: Blocks
    ) -> None:
        """A forgotten token (-1) or a foreign id has no embedding."""
        for wrong in (-1, services.info.vocab_size):
            spoiled = blocks.token_ids.copy()
            spoiled[3, 5] = wrong
            with pytest.raises(MegaContextError):
                encoder.encode_blocks(attrs.evolve(blocks, token_ids=spoiled), services)

    def test_a_child_that_is_not_finite_is_refused(
        self, encoder: GistEncoder, services: GistServices, blocks: Blocks
    ) -> None:
        """NaN must not climb the tree silently."""
        children = encoder.encode_blocks(blocks, services)
        children.rows[40, 0, 0] = np.nan
        with pytest.raises(MegaContextError):
            encoder.encode_gists(2, children, services)

    def test_another_base_or_tokenizer_changes_the_fingerprint(
        self, encoder: GistEncoder, services: GistServices
    ) -> None:
        """Or stale gists would pass for fresh ones. A `ModelMismatchError` is an answer, too."""
        info = services.info
        digests = [encoder.fingerprint(info)]
        for other in ({"fingerprint": "f" * 64}, {"tokenizer_fingerprint": "e" * 64}):
            with suppress(ModelMismatchError):
                digests.append(encoder.fingerprint(attrs.evolve(info, **other)))  # type: ignore[arg-type]
        assert len(set(digests)) == len(digests)
        assert all(int(digest, 16) >= 0 for digest in digests), "a fingerprint is a hex digest"

    def _levels(
        self, encoder: GistEncoder, services: GistServices, blocks: Blocks
    ) -> list[tuple[Gists, int]]:
        """Return gists of LOD1 and LOD2 with how many there must be."""
        low = encoder.encode_blocks(blocks, services)
        high = encoder.encode_gists(2, self._stored(encoder, low), services)
        return [(low, len(blocks)), (high, len(blocks) // BLOCK_SIZE)]

    @staticmethod
    def _encoded(
        encoder: GistEncoder, services: GistServices, history: Ids, cuts: Sequence[int]
    ) -> Gists:
        """Return gists of all blocks, encoded in the batches that `cuts` bound."""
        left = encoder.left_tokens
        made = [
            encoder.encode_blocks(blocks_of(history, first, stop, left), services)
            for first, stop in pairwise(cuts)
        ]
        return Gists(
            np.concatenate([one.rows for one in made]), np.concatenate([one.aux for one in made])
        )

    @staticmethod
    def _long_history(services: GistServices, n_blocks: int) -> Ids:
        random = np.random.default_rng(8)
        shape = (n_blocks, BLOCK_SIZE)
        return random.integers(0, services.info.vocab_size, shape).astype(np.int32)

    @staticmethod
    def _cuts() -> list[list[int]]:
        """Return lengths of appends: everything at once, and pieces that no block ends with."""
        return [[2 * BLOCK_SIZE**2], [7, 25, 1, 500, 33, 800, 682]]

    @staticmethod
    def _tree_gists(
        encoder: GistEncoder, services: GistServices, history: Ids, lengths: Sequence[int]
    ) -> list[Floats]:
        """Return the gists of a tree that took the history in appends of these lengths."""
        store = InMemoryStorage(Path("unused"))
        store.open("create", Header(block_bytes=4 * BLOCK_SIZE))
        journal = Journal(store, root=bytes(16), token_bytes=4, clock=lambda: 0)
        tree = MegaContextTree(journal, encoder, services, gist_dtype="f4")
        tree.open()
        at = 0
        for length in lengths:
            message = MessageRecord(role=0, trust=3, flags=0, ts_us=0, n_tokens=length, body=b"")
            tree.append(history.reshape(-1)[at : at + length], [message]).wait()
            at += length
        gists = [tree.gists(lod, np.arange(tree.n_nodes(lod))) for lod in (1, 2)]
        tree.close()
        journal.close()
        return gists

    @staticmethod
    def _stored(encoder: GistEncoder, gists: Gists) -> Gists:
        """Return gists as storage gives them back."""
        codec = RowCodec(encoder.gist_slots, gists.rows.shape[-1], encoder.aux_size)
        return codec.decode(codec.encode(gists))

    def _assert_same(self, expected: Floats, actual: Floats) -> None:
        if self.is_bitwise:
            np.testing.assert_array_equal(expected, actual)
        else:
            np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)
