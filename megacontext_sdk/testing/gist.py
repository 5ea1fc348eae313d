"""What every gist encoder must keep, as a pytest class to inherit from.

    class TestAcme(GistEncoderConformance):
        make = staticmethod(AcmeEncoder)

Checks the contract, not quality: whether gists help a model is measured elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np
import pytest

from megacontext_sdk.contracts.gist import Gists
from megacontext_sdk.contracts.model import ModelInfo
from megacontext_sdk.errors import MegaContextError
from megacontext_sdk.memory.gist_rows import RowCodec
from megacontext_sdk.memory.lod import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from megacontext_sdk.contracts.arrays import Floats, Ids
    from megacontext_sdk.contracts.gist import GistEncoder, GistServices

__all__ = ["GistEncoderConformance", "TableServices"]

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
    def blocks(self, services: GistServices) -> Ids:
        """Return 64 blocks of random tokens, int32[64, 32]."""
        random = np.random.default_rng(7)
        shape = (2 * BLOCK_SIZE, BLOCK_SIZE)
        return random.integers(0, services.info.vocab_size, shape).astype(np.int32)

    @pytest.fixture
    def encoder(self) -> GistEncoder:
        """Return a fresh encoder."""
        return self.make()

    def test_gists_have_the_declared_shape_and_type(
        self, encoder: GistEncoder, services: GistServices, blocks: Ids
    ) -> None:
        """Rows are float32[n, S, d], aux float32[n, A], at every level."""
        for gists, n in self._levels(encoder, services, blocks):
            shape = (n, encoder.gist_slots, services.info.hidden_size)
            assert shape == gists.rows.shape, "rows must be [n, gist_slots, hidden_size]"
            assert (n, encoder.aux_size) == gists.aux.shape, "aux must be [n, aux_size]"
            assert np.float32 == gists.rows.dtype, "rows must be float32"
            assert np.float32 == gists.aux.dtype, "aux must be float32"

    def test_gists_are_finite_also_as_float16(
        self, encoder: GistEncoder, services: GistServices, blocks: Ids
    ) -> None:
        """Stored rows are float16 by default, so numbers must fit."""
        for gists, _ in self._levels(encoder, services, blocks):
            assert RowCodec.is_finite(self._stored(encoder, gists)), "a gist is not finite"

    def test_gists_are_as_large_as_token_rows(
        self, encoder: GistEncoder, services: GistServices, blocks: Ids
    ) -> None:
        """A gist stands among token rows, so its norm is within half and twice theirs."""
        usual = np.linalg.norm(services.embedding_table(), axis=1).mean()
        for gists, _ in self._levels(encoder, services, blocks):
            ratio = np.linalg.norm(gists.rows, axis=-1) / usual
            low, high = _NORM_RATIO
            assert low <= ratio.min() <= ratio.max() <= high, "norm ratio is outside [0.5, 2]"

    def test_a_batch_equals_single_blocks(
        self, encoder: GistEncoder, services: GistServices, blocks: Ids
    ) -> None:
        """How blocks are batched must not show in their gists."""
        whole = encoder.encode_blocks(blocks, services)
        single = [encoder.encode_blocks(blocks[i : i + 1], services) for i in range(len(blocks))]
        self._assert_same(np.concatenate([one.rows for one in single]), whole.rows)
        self._assert_same(np.concatenate([one.aux for one in single]), whole.aux)

    def test_a_batch_equals_single_sibling_groups(
        self, encoder: GistEncoder, services: GistServices, blocks: Ids
    ) -> None:
        """How parents are batched must not show either."""
        children = self._stored(encoder, encoder.encode_blocks(blocks, services))
        whole = encoder.encode_gists(2, children, services)
        halves = [
            encoder.encode_gists(2, Gists(children.rows[part], children.aux[part]), services)
            for part in (slice(0, BLOCK_SIZE), slice(BLOCK_SIZE, None))
        ]
        self._assert_same(np.concatenate([half.rows for half in halves]), whole.rows)

    def test_a_fresh_encoder_gives_the_same_bits(self, services: GistServices, blocks: Ids) -> None:
        """Gists depend on text and fingerprint only, not on what was encoded before."""
        one, two = self.make(), self.make()
        two.encode_blocks(blocks[::-1].copy(), services)
        first, second = one.encode_blocks(blocks, services), two.encode_blocks(blocks, services)
        np.testing.assert_array_equal(first.rows, second.rows)
        assert one.fingerprint(services.info) == two.fingerprint(services.info)

    def test_no_blocks_give_no_gists(self, encoder: GistEncoder, services: GistServices) -> None:
        """An empty batch is legal."""
        gists = encoder.encode_blocks(np.empty((0, BLOCK_SIZE), np.int32), services)
        assert 0 == len(gists.rows) == len(gists.aux)

    def test_encoding_leaves_its_input_alone(
        self, encoder: GistEncoder, services: GistServices, blocks: Ids
    ) -> None:
        """Arrays handed in may be read-only views of a store."""
        children = self._stored(encoder, encoder.encode_blocks(blocks, services))
        for array in (blocks, children.rows, children.aux):
            array.flags.writeable = False
        encoder.encode_blocks(blocks, services)
        encoder.encode_gists(2, children, services)

    def test_a_partial_block_is_refused(
        self, encoder: GistEncoder, services: GistServices, blocks: Ids
    ) -> None:
        """Partial blocks stay tokens; nothing pads them."""
        with pytest.raises(MegaContextError):
            encoder.encode_blocks(blocks[:, :-1], services)

    def test_a_token_outside_the_vocabulary_is_refused(
        self, encoder: GistEncoder, services: GistServices, blocks: Ids
    ) -> None:
        """A forgotten token (-1) or a foreign id has no embedding."""
        for wrong in (-1, services.info.vocab_size):
            spoiled = blocks.copy()
            spoiled[3, 5] = wrong
            with pytest.raises(MegaContextError):
                encoder.encode_blocks(spoiled, services)

    def test_a_child_that_is_not_finite_is_refused(
        self, encoder: GistEncoder, services: GistServices, blocks: Ids
    ) -> None:
        """NaN must not climb the tree silently."""
        children = encoder.encode_blocks(blocks, services)
        children.rows[40, 0, 0] = np.nan
        with pytest.raises(MegaContextError):
            encoder.encode_gists(2, children, services)

    def test_another_base_or_tokenizer_changes_the_fingerprint(
        self, encoder: GistEncoder, services: GistServices
    ) -> None:
        """Or stale gists would pass for fresh ones."""
        info = services.info
        others = [
            attrs.evolve(info, fingerprint="f" * 64),
            attrs.evolve(info, tokenizer_fingerprint="e" * 64),
        ]
        digests = {encoder.fingerprint(one) for one in (info, *others)}
        assert len(others) + 1 == len(digests)
        assert all(int(digest, 16) >= 0 for digest in digests), "a fingerprint is a hex digest"

    def _levels(
        self, encoder: GistEncoder, services: GistServices, blocks: Ids
    ) -> list[tuple[Gists, int]]:
        """Return gists of LOD1 and LOD2 with how many there must be."""
        low = encoder.encode_blocks(blocks, services)
        high = encoder.encode_gists(2, self._stored(encoder, low), services)
        return [(low, len(blocks)), (high, len(blocks) // BLOCK_SIZE)]

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
