"""Rows 19, 21, 23, 25: the warm start, gradients, nested slots, and a base that stays as it is."""

from __future__ import annotations

import hashlib

import attrs
import numpy as np
import pytest
import torch

from megacontext_gistnet.nets.model import new_model
from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.testing.gist import TableServices, blocks_of


class Services(TableServices):
    """The embedding table of a base as numpy, for the built-in encoder."""

    def __init__(self, base):
        weight = base.get_input_embeddings().weight.detach().numpy()
        super().__init__(*weight.shape)
        self.table = weight


def digest(base):
    """Return a hash of every parameter and buffer."""
    found = hashlib.sha256()
    for name, one in sorted(base.state_dict().items()):
        found.update(name.encode() + one.detach().numpy().tobytes())
    return found.hexdigest()


def trained(model, windows, steps=2, lod2=True):
    """Take some steps of AdamW towards nothing in particular."""
    optimiser = torch.optim.AdamW([one for _, one, _ in model.trainable()], lr=1e-2)
    for _ in range(steps):
        gists = model.blocks(windows)
        loss = (gists - 1.0).square().mean()
        if lod2:
            for lod in range(2, 2 + model.config.n_levels):
                parents = model.parents(gists.flatten(0, 1).repeat(4, 1, 1)[None], lod)
                loss = loss + (parents + 1.0).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_row21_an_untrained_encoder_is_the_built_in_mean(model, base, windows, slots):
    ids = windows(n=1, length=32 * 32)
    services, mean = Services(base), MeanGistEncoder(slots)
    expected = mean.encode_blocks(
        blocks_of(ids.view(-1, 32).numpy().astype(np.int32), 0, 32, 0), services
    )
    with torch.no_grad():
        found = model.blocks(ids, slots=slots)[0]
        sizes = model.block_sizes(ids)
        assert np.abs(expected.rows - found.numpy()).max() < 1e-6
        assert np.abs(expected.aux[:, 0] - sizes[0].numpy()).max() < 1e-6
        assert abs(model.rho - float(mean._scale(services))) < 1e-6
        for lod in (2, 3):  # the same children serve as gists of any level
            parents = model.parents(found[None], lod, sizes, slots=slots)
            above = mean.encode_gists(lod, expected, services)
            assert np.abs(above.rows - parents.numpy()).max() < 1e-6
            size = model.parent_sizes(found[None], sizes)
            assert np.abs(above.aux[:, 0] - size.numpy()).max() < 1e-6


def test_row21_gists_start_as_large_as_token_rows(model, windows):
    usual = model.rho * model.width**0.5
    ratio = model.blocks(windows()).norm(dim=-1) / usual
    assert 0.5 <= ratio.min() <= ratio.max() <= 2.0


def test_slots_are_nested(model, moved, windows):
    moved(model)
    whole = model.blocks(windows())
    children = whole.flatten(0, 1)[:8].repeat(4, 1, 1)[None]
    parents = model.parents(children, 2)
    for slots in (1, 2, 4):
        torch.testing.assert_close(whole[:, :, :slots], model.blocks(windows(), slots=slots))
        # the first slot of a child is all that counts, so S' children give the same parent
        torch.testing.assert_close(parents, model.parents(children[:, :, :slots], 2))
        torch.testing.assert_close(parents[:, :slots], model.parents(children, 2, slots=slots))


def test_a_gist_is_that_of_its_own_span(model, moved, windows):
    """The trap: right shapes, wrong rows. Only the gist of the changed block may change much."""
    moved(model)
    ids = windows(n=1)
    other = ids.clone()
    other[0, 64:96] = (other[0, 64:96] + 7) % 260
    change = (model.blocks(ids) - model.blocks(other)).abs().amax(dim=(0, 2, 3))
    assert 2 == int(change.argmax())
    torch.testing.assert_close(change[:2], torch.zeros(2))


def test_windows_do_not_see_each_other(model, moved, windows):
    moved(model)
    pair = windows(n=2)
    torch.testing.assert_close(model.blocks(pair)[1:], model.blocks(pair[1:]), atol=1e-5, rtol=1e-5)


def test_row23_gradients_reach_everything_of_the_encoder_and_nothing_of_the_base(
    model, base, windows
):
    before = {name: one.detach().clone() for name, one, _ in model.trainable()}
    trained(model, windows())
    still = [name for name, one, _ in model.trainable() if torch.equal(before[name], one)]
    assert [] == still
    assert all(one.grad is not None for _, one, _ in model.trainable())
    assert all(one.grad is None for one in base.parameters())


def test_gists_of_blocks_get_gradients_through_their_parents(model, windows):
    trained(model, windows())
    gists = model.blocks(windows(n=1, length=32 * 32))
    gists.retain_grad()
    model.parents(gists, 2).square().sum().backward()
    assert gists.grad[:, :, 0].abs().amax(dim=(0, 2)).min() > 0
    assert 0 == gists.grad[:, :, 1:].abs().max()


def test_row25_the_base_keeps_every_bit_and_every_logit(model, base, windows):
    ids = windows()
    with torch.no_grad():
        before, logits = digest(base), base(ids).logits
    trained(model, ids, steps=3)
    model.blocks(ids)
    with torch.no_grad():
        assert before == digest(base)
        assert torch.equal(logits, base(ids).logits)


def test_what_it_trains_is_grouped_and_none_of_it_the_base_s(model, base):
    frozen = {id(one) for one in base.parameters()}
    groups = {group for _, _, group in model.trainable()}
    assert groups == (
        {"head", "levels", "lora"} if model.kind == "contextual" else {"head", "levels"}
    )
    assert set() == frozen & {id(one) for _, one, _ in model.trainable()}
    assert {name for name, _, _ in model.trainable()} == set(model.state_dict())
    assert all(one.dtype == torch.float32 for _, one, _ in model.trainable())


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_the_same_seed_makes_the_same_encoder(model, base):
    torch.manual_seed(99)
    assert same(model, new_model(model.kind, base))
    assert not same(model, new_model(model.kind, base, seed=1))


def test_a_bound_limits_what_is_added(model, base, moved, windows):
    config = attrs.evolve(model.config, residual_bound=0.5)
    bounded = moved(new_model(model.kind, base, config), size=1.0)
    added = (bounded.blocks(windows()) - bounded.mean_blocks(windows())) / bounded.rho
    assert added.square().mean(-1).sqrt().max() <= 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, ids: model.blocks(ids[:, :-1]), "multiple of 32"),
        (lambda model, ids: model.blocks(ids[0]), "B, T"),
        (lambda model, ids: model.parents(model.blocks(ids), 2), "children are"),
        (lambda model, ids: model.blocks(ids, slots=3), "trained for 4"),
        (lambda model, ids: model.parents(model.blocks(ids)[:, :1].repeat(1, 32, 1, 1), 1), "LOD2"),
    ],
    ids=["partial", "flat", "group", "slots", "level"],
)
def test_bad_calls_are_refused(model, windows, call, message):
    with pytest.raises(ConfigError, match=message):
        call(model, windows())
