"""The kit for gist encoders catches what it is there to catch: one broken double per test."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.contracts.gist import Gists
from megacontext_sdk.testing.gist import GistEncoderConformance, TableServices


class Flat(MeanGistEncoder):
    """Drops the slot axis."""

    def encode_blocks(self, token_ids, services):
        gists = super().encode_blocks(token_ids, services)
        return Gists(gists.rows[:, 0], gists.aux)


class Double(MeanGistEncoder):
    """Gives float64."""

    def encode_blocks(self, token_ids, services):
        gists = super().encode_blocks(token_ids, services)
        return Gists(gists.rows.astype(np.float64), gists.aux)


class Huge(MeanGistEncoder):
    """Scales beyond float16."""

    def encode_blocks(self, token_ids, services):
        gists = super().encode_blocks(token_ids, services)
        return Gists(gists.rows * np.float32(1e7), gists.aux)


class Loud(MeanGistEncoder):
    """Ends on a layer norm: norm sqrt(d), far from token rows."""

    def encode_gists(self, lod, children, services):
        gists = super().encode_gists(lod, children, services)
        scale = np.sqrt(np.square(gists.rows).mean(axis=-1, keepdims=True))
        return Gists(gists.rows / scale, gists.aux)


class Centred(MeanGistEncoder):
    """Normalises over the batch."""

    def encode_blocks(self, token_ids, services):
        gists = super().encode_blocks(token_ids, services)
        return Gists(gists.rows - gists.rows.mean(axis=0) / 4, gists.aux)

    def encode_gists(self, lod, children, services):
        gists = super().encode_gists(lod, children, services)
        return Gists(gists.rows - gists.rows.mean(axis=0) / 4, gists.aux)


class Drifting(MeanGistEncoder):
    """Depends on what it encoded before."""

    seen = 0

    def encode_blocks(self, token_ids, services):
        gists = super().encode_blocks(token_ids, services)
        self.seen += len(token_ids)
        return Gists(gists.rows * np.float32(1 + self.seen / 1000), gists.aux)


class NeverEmpty(MeanGistEncoder):
    """Fails on an empty batch."""

    def encode_blocks(self, token_ids, services):
        assert token_ids.max() >= 0
        return super().encode_blocks(token_ids, services)


class Scribbling(MeanGistEncoder):
    """Works in place."""

    def encode_gists(self, lod, children, services):
        children.rows[:] *= 1
        return super().encode_gists(lod, children, services)


class Padding(MeanGistEncoder):
    """Pads partial blocks and clips ids."""

    def encode_blocks(self, token_ids, services):
        padded = np.pad(token_ids, ((0, 0), (0, 32 - token_ids.shape[1])))
        return super().encode_blocks(np.clip(padded, 0, len(services.table) - 1), services)


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
    blocks = random.integers(0, services.info.vocab_size, (64, 32)).astype(np.int32)
    given = {"encoder": make(), "services": services, "blocks": blocks}
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
