"""Row 20, 22: the shape of a gistnet, and that each of its steps does something."""

from __future__ import annotations

import pytest
import torch

from megacontext_gistnet.nets.config import GistNetConfig
from megacontext_gistnet.nets.gistnet import GistNetBody
from megacontext_gistnet.nets.model import new_model
from megacontext_sdk.errors import ConfigError

WIDTHS = (256, 384, 512, 576, 768, 1024, 2048)


def formula(width, inner):
    """Return the specification's parameter count: 1 self-, 3 cross-attentions, 2 feed-forwards."""
    return 2 * width * inner + 4 * inner**2 * (1 + 3) + 2 * inner * (2 * inner) * 2


def body(width=48, seed=0, **changes):
    """Return a body whose maps all do something."""
    torch.manual_seed(seed)
    made = GistNetBody(width, GistNetConfig(**{"hidden": 32, **changes}))
    torch.nn.init.normal_(made.leave.weight, std=0.2)
    return made


def rows(n=3, width=48, seed=1):
    return torch.randn(n, 32, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", WIDTHS)
def test_row20_the_size_is_that_of_the_formula(width):
    config = GistNetConfig.for_width(width)
    assert config.hidden == (96 if width in {256, 2048} else 128)
    size = sum(one.numel() for one in GistNetBody(width, config).parameters())
    assert abs(size / formula(width, config.hidden) - 1) < 0.05


def test_row20_the_order_of_the_tokens_matters():
    x, made = rows(), body()
    shuffled = x[:, torch.randperm(32, generator=torch.Generator().manual_seed(2))]
    assert (made(x) - made(shuffled)).abs().amax(dim=(1, 2)).min() > 1e-3


@pytest.mark.parametrize("token", [0, 17, 31])
def test_row20_every_token_matters(token):
    x, made = rows(), body()
    other = x.clone()
    other[:, token] += 1.0
    assert (made(x) - made(other)).abs().amax(dim=(1, 2)).min() > 1e-3


@pytest.mark.parametrize(("changed", "seen"), [(31, 0), (0, 31)])
def test_a_block_is_mixed_both_ways(changed, seen):
    """A causal mask would hide the last token from the first."""
    made = body()
    x = made.enter(rows())
    other = x.clone()
    other[:, changed] += 1.0
    assert (made.mix(x) - made.mix(other))[:, seen].abs().max() > 1e-4


def test_row20_slots_have_no_position():
    """Once mixed, rows may come in any order: only their content decides what a slot reads."""
    made = body()
    x = made.mix(made.enter(rows()))
    order = torch.randperm(32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(made.compress(x), made.compress(x[:, order]))
    torch.testing.assert_close(made.leave_through(x, None), made.leave_through(x[:, order], None))


def test_row22_what_a_token_is_told_is_its_own():
    made = body()
    x = made.mix(made.enter(rows()))
    update = made.expand(x, made.compress(x))
    assert update.var(dim=1).mean() > 1e-6


def test_row22_a_single_key_would_tell_all_tokens_the_same():
    """The trap: one slot and no key of its own give a softmax that is 1, whatever the query."""
    made = body()
    x = made.mix(made.enter(rows()))
    y = made.expand_norm(x)
    query = made.expand_query(y).unflatten(-1, (made.heads, -1))
    key, value = made._kv(made.compress(x)[:, :1])
    weights = torch.einsum("nthe,nmhe->nthm", query, key).softmax(-1)
    told = torch.einsum("nthm,nmhe->nthe", weights, value)
    assert 0.0 == told.var(dim=1).max().item()
    with pytest.raises(ConfigError, match="memory_slots must be a whole number of at least 2"):
        GistNetConfig(memory_slots=1)


def test_row22_without_the_expansion_the_output_is_another(monkeypatch):
    x, made = rows(), body()
    whole = made(x)
    monkeypatch.setattr(made, "expand", lambda y, _memory: torch.zeros_like(y))
    assert (whole - made(x)).abs().amax(dim=(1, 2)).min() > 1e-3


def test_the_slots_differ(table, moved):
    model = moved(new_model("gistnet", table(48)))
    residual = model.blocks(torch.arange(32)[None]) - model.mean_blocks(torch.arange(32)[None])
    flat = torch.nn.functional.normalize(residual[0, 0], dim=-1)
    assert (flat @ flat.T - torch.eye(4)).abs().max() < 0.999


def test_levels_share_a_body_that_is_not_that_of_blocks(table, moved):
    model = moved(new_model("gistnet", table(48), GistNetConfig(hidden=32, n_levels=2)))
    children = rows(2, 48)[:, :, None] * model.rho
    second, third, ninth = (model.parents(children, lod) for lod in (2, 3, 9))
    assert (second - third).abs().max() > 1e-6
    torch.testing.assert_close(third, ninth)  # above the last embedding, levels share it
    with torch.no_grad():
        for one in model.body.parameters():
            one.zero_()
    torch.testing.assert_close(second, model.parents(children, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 50}, "hidden=50 cannot be divided among 4 heads"),
        ({"hidden": 12}, "odd width"),
        ({"slots": 3}, "slots must be 1, 2 or 4"),
        ({"residual_bound": -1}, "residual_bound must be at least 0"),
        ({"heads": 0}, "heads must be a whole number of at least 1"),
    ],
)
def test_shapes_that_fit_no_network_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        GistNetConfig(**changes)
