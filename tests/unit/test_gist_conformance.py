"""The kit for gist encoders catches what it is there to catch: one broken double per test."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.contracts.gist import Gists
from megacontext_sdk.testing.gist import GistEncoderConformance, TableServices, blocks_of


class Flat(MeanGistEncoder):
    """Drops the slot axis."""

    def encode_blocks(self, blocks, services):
        gists = super().encode_blocks(blocks, services)
        return Gists(gists.rows[:, 0], gists.aux)


class Double(MeanGistEncoder):
    """Gives float64."""

    def encode_blocks(self, blocks, services):
        gists = super().encode_blocks(blocks, services)
        return Gists(gists.rows.astype(np.float64), gists.aux)


class Huge(MeanGistEncoder):
    """Scales beyond float16."""

    def encode_blocks(self, blocks, services):
        gists = super().encode_blocks(blocks, services)
        return Gists(gists.rows * np.float32(1e7), gists.aux)


class Loud(MeanGistEncoder):
    """Ends on a layer norm: norm sqrt(d), far from token rows."""

    def encode_gists(self, lod, children, services):
        gists = super().encode_gists(lod, children, services)
        scale = np.sqrt(np.square(gists.rows).mean(axis=-1, keepdims=True))
        return Gists(gists.rows / scale, gists.aux)


class Centred(MeanGistEncoder):
    """Normalises over the batch."""

    def encode_blocks(self, blocks, services):
        gists = super().encode_blocks(blocks, services)
        return Gists(gists.rows - gists.rows.mean(axis=0) / 4, gists.aux)

    def encode_gists(self, lod, children, services):
        gists = super().encode_gists(lod, children, services)
        return Gists(gists.rows - gists.rows.mean(axis=0) / 4, gists.aux)


class Drifting(MeanGistEncoder):
    """Depends on what it encoded before."""

    seen = 0

    def encode_blocks(self, blocks, services):
        gists = super().encode_blocks(blocks, services)
        self.seen += len(blocks)
        return Gists(gists.rows * np.float32(1 + self.seen / 1000), gists.aux)


class Peeking(MeanGistEncoder):
    """Looks at what comes behind a block, as far as it was handed over."""

    def encode_blocks(self, blocks, services):
        gists = super().encode_blocks(blocks, services)
        gists.rows[:-1] += gists.rows[1:] / 4
        return gists


class FarSighted(MeanGistEncoder):
    """Looks further left than it says, within a batch."""

    left_tokens = 32

    def encode_blocks(self, blocks, services):
        gists = super().encode_blocks(blocks, services)
        gists.rows[2:] += gists.rows[:-2] / 4
        return gists


class Wavering(MeanGistEncoder):
    """Asks for more each time it is asked."""

    asked = 0

    @property
    def left_tokens(self):
        self.asked += 1
        return self.asked


class Vague(MeanGistEncoder):
    """Does not say how far it looks."""

    left_tokens = None


class NeverEmpty(MeanGistEncoder):
    """Fails on an empty batch."""

    def encode_blocks(self, blocks, services):
        assert blocks.token_ids.max() >= 0
        return super().encode_blocks(blocks, services)


class Scribbling(MeanGistEncoder):
    """Works in place."""

    def encode_gists(self, lod, children, services):
        children.rows[:] *= 1
        return super().encode_gists(lod, children, services)


class Padding(MeanGistEncoder):
    """Pads partial blocks and clips ids."""

    def encode_blocks(self, blocks, services):
        ids = blocks.token_ids
        padded = np.pad(ids, ((0, 0), (0, 32 - ids.shape[1])))
        clipped = np.clip(padded, 0, len(services.table) - 1)
        return super().encode_blocks(attrs.evolve(blocks, token_ids=clipped), services)


class Trusting(MeanGistEncoder):
    """Lets NaN climb."""

    def encode_gists(self, lod, children, services):
        rows = np.nan_to_num(children.rows)
        return super().encode_gists(lod, Gists(rows, children.aux), services)


class Anonymous(MeanGistEncoder):
    """Has one fingerprint for every base."""

    def fingerprint(self, info):
        return "ab" * 32


BROKEN = {
    "test_gists_have_the_declared_shape_and_type": (Flat, Double),
    "test_gists_are_finite_also_as_float16": (Huge,),
    "test_gists_are_as_large_as_token_rows": (Loud,),
    "test_a_batch_equals_single_blocks": (Centred, Drifting),
    "test_a_batch_equals_single_sibling_groups": (Centred,),
    "test_a_token_beyond_the_left_context_changes_nothing": (FarSighted,),
    "test_a_later_token_changes_nothing": (Peeking,),
    "test_gists_do_not_depend_on_how_appends_were_cut": (Drifting,),
    "test_the_encoder_gets_exactly_the_left_tokens_it_asks_for": (Wavering,),
    "test_what_it_declares_makes_sense": (Vague,),
    "test_a_fresh_encoder_gives_the_same_bits": (Drifting,),
    "test_no_blocks_give_no_gists": (NeverEmpty,),
    "test_encoding_leaves_its_input_alone": (Scribbling,),
    "test_a_partial_block_is_refused": (Padding,),
    "test_a_token_outside_the_vocabulary_is_refused": (Padding,),
    "test_a_child_that_is_not_finite_is_refused": (Trusting,),
    "test_another_base_or_tokenizer_changes_the_fingerprint": (Anonymous,),
}
CASES = [(test, broken) for test, doubles in BROKEN.items() for broken in doubles]


def run(test, make):
    """Run one standard test as pytest would."""
    kit = GistEncoderConformance()
    kit.make = make
    services = TableServices()
    random = np.random.default_rng(7)
    history = random.integers(0, services.info.vocab_size, (64, 32)).astype(np.int32)
    blocks = blocks_of(history, 0, 64, 0)
    given = {"encoder": make(), "services": services, "blocks": blocks, "history": history}
    method = getattr(kit, test)
    names = method.__code__.co_varnames[1 : method.__code__.co_argcount]
    method(**{name: given[name] for name in names})


@pytest.mark.parametrize(("test", "broken"), CASES, ids=[f"{t}-{b.__name__}" for t, b in CASES])
def test_a_broken_encoder_is_caught(test, broken):
    run(test, MeanGistEncoder)
    with np.errstate(all="ignore"), pytest.raises((Exception, pytest.fail.Exception)) as caught:
        run(test, broken)
    assert not isinstance(caught.value, TypeError | AttributeError)


def test_every_standard_test_has_a_broken_double():
    standard = {name for name in vars(GistEncoderConformance) if name.startswith("test_")}
    assert set(BROKEN) == standard
