"""The ceiling: what the best vectors could do, found by descent through the frozen base.

The gists of each window are free numbers, started at `mean` and moved until the base, reading them,
predicts what it predicts with the full context (KL to that teacher). No encoder is involved, so
what they reach tells what rows can carry, whoever makes them. Two ceilings are told apart:

- *fitted here*: fitted on the very tokens that are counted. Optimistic: the vectors may learn the
  answer instead of the text.
- *fitted elsewhere*: fitted on continuations that the base itself wrote behind the full context,
  and counted on the real text, which the vectors never saw. A little too low: with more of these
  texts it rises slowly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np
import torch
from torch.nn import functional

from megacontext_gistnet.evaluation.deployed import encode_windows
from megacontext_gistnet.evaluation.lab import BASELINE
from megacontext_gistnet.evaluation.rows import gists_then_raw, rows_of_tokens
from megacontext_gistnet.evaluation.substitution import RAW_TOKENS, counted_tail
from megacontext_gistnet.evaluation.tables import Condition, Section, tabulate
from megacontext_gistnet.nets.mean import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from megacontext_gistnet.evaluation.lab import Lab, Readings
    from megacontext_gistnet.evaluation.reader import Reader
    from megacontext_gistnet.evaluation.statistics import Nats
    from megacontext_gistnet.evaluation.windows import Windows
    from megacontext_sdk.contracts.arrays import Floats, Indices

__all__ = ["ELSEWHERE", "HERE", "CeilingSettings", "ceiling", "fit", "write_on"]

HERE = "optimised, fitted here"
ELSEWHERE = "optimised, fitted elsewhere"

_LOGITS_HELD = 2**26  # numbers: 256 MiB of teacher logits at a time


@attrs.frozen(kw_only=True)
class CeilingSettings:
    """How vectors are fitted.

    Attributes:
        n_steps: steps of Adam, cosine to zero.
        rate: its first step size, in units of the RMS of a token row.
        n_continuations: texts the base writes behind each window for the honest ceiling.
        seed: of that writing.
    """

    n_steps: int = 200
    rate: float = 0.1
    n_continuations: int = 32
    seed: int = 0


def ceiling(
    readings: Readings, slots: Sequence[int], settings: CeilingSettings | None = None
) -> Section:
    """Measure optimised vectors in place of every block but the last three, and all arms beside.

    Args:
        readings: a few windows; every block before the last three of each is fitted.
        slots: numbers of rows per block to fit.
        settings: how.
    """
    how = settings or CeilingSettings()
    lab, windows = readings.lab, readings.windows
    n_tokens = windows.n_tokens
    scored = counted_tail(n_tokens)
    n_blocks = (n_tokens - RAW_TOKENS) // BLOCK
    study = readings.study(gists_then_raw(n_tokens, RAW_TOKENS), scored)
    written = _written(readings, how)
    losses: dict[Condition, Nats] = {}
    for arm in lab.arms:
        keys = gists_then_raw(n_tokens, RAW_TOKENS, gist_slots=arm.slots)
        condition = Condition(arm.name, arm.slots, n_blocks * arm.slots)
        losses[condition] = readings.read(arm.label, keys, scored, readings.gists(arm))
    for s in slots:
        keys = gists_then_raw(n_tokens, RAW_TOKENS, gist_slots=s)
        for name, texts in ((ELSEWHERE, written), (HERE, [windows.token_ids])):
            with lab.progress.stage(f"{name}, S={s}", how.n_steps) as advance:
                rows = _fitted(lab, windows, texts, s, how, advance)
            condition = Condition(name, s, n_blocks * s)
            losses[condition] = readings.read(f"{name}, S={s}", keys, scored, {1: rows})
    return Section(
        key="ceiling",
        title="The ceiling: vectors optimised one by one",
        about=(
            (
                f"{len(windows) * n_blocks} blocks of {len(windows)} windows; gradient descent on "
                f"the gist rows themselves, {how.n_steps} steps of Adam from `mean`, KL to the "
                "full context"
            ),
            f"{HERE}: fitted on the very {len(scored)} tokens that are counted (optimistic)",
            (
                f"{ELSEWHERE}: fitted on {how.n_continuations} continuations that the base wrote "
                "behind the full context, counted on the real text"
            ),
        ),
        fingerprint=windows.fingerprint,
        lines=tabulate(study, losses, windows.known_domains, rows_of_full=n_tokens - RAW_TOKENS),
    )


def fit(
    reader: Reader,
    texts: Sequence[Indices],
    start: Floats,
    rho: float,
    settings: CeilingSettings,
    advance: Callable[[int], None] = lambda _: None,
) -> Floats:
    """Return gist rows that make the base predict as the full context does.

    Args:
        reader: the base; its parameters take no part in the descent.
        texts: one or more int64[n, T], the same windows with other last 96 tokens each; taken in
            turn.
        start: float32[n, T / 32 - 3, S, d], where the descent begins.
        rho: RMS of a token row, the unit of steps.
        settings: how.
        advance: told of every step.

    Returns:
        float32[n, T / 32 - 3, S, d].
    """
    n_tokens = texts[0].shape[1]
    keys = gists_then_raw(n_tokens, RAW_TOKENS, gist_slots=start.shape[2])
    rows = rows_of_tokens(keys, counted_tail(n_tokens)) - 1
    ids = [torch.from_numpy(one).to(reader.device) for one in texts]
    teachers = [_teacher(reader, one) for one in ids]
    free = (torch.from_numpy(start).to(reader.device) / rho).requires_grad_()
    descent = torch.optim.Adam([free], lr=settings.rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, settings.n_steps)
    for step in range(settings.n_steps):
        text, teacher = ids[step % len(ids)], teachers[step % len(ids)]
        laid = reader.lay_out(text, keys[:-1], {1: free * rho})
        student = functional.log_softmax(reader.logits(laid, rows), dim=-1)
        kl = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
        # By hand, so that no gradient is ever left at a parameter of the base.
        (free.grad,) = torch.autograd.grad(kl.mean(dim=1).sum(), [free])
        descent.step()
        schedule.step()
        advance(1)
    found: Floats = (free.detach() * rho).cpu().numpy()
    return found


def write_on(
    reader: Reader, token_ids: Indices, n_keep: int, generator: torch.Generator
) -> Indices:
    """Return windows whose tokens from `n_keep` on the base wrote itself, int64[n, T].

    Args:
        reader: the base.
        token_ids: int64[n, T].
        n_keep: tokens that stay as they are.
        generator: on the CPU, where chance comes from.
    """
    written = torch.from_numpy(token_ids.copy()).to(reader.device)
    first = written[:, :n_keep]
    if reader.sink is not None:
        first = torch.cat([torch.full_like(first[:, :1], reader.sink), first], dim=1)
    past = None
    with torch.inference_mode():
        for at in range(n_keep, token_ids.shape[1]):
            output = reader.base(
                input_ids=first, past_key_values=past, use_cache=True, logits_to_keep=1
            )
            past = output.past_key_values
            chance = functional.softmax(output.logits[:, -1].float(), dim=-1).cpu()
            first = torch.multinomial(chance, 1, generator=generator).to(reader.device)
            written[:, at] = first[:, 0]
    result: Indices = written.cpu().numpy()
    return result


def _written(readings: Readings, how: CeilingSettings) -> list[Indices]:
    """Return the windows with other endings, as the base would go on."""
    generator = torch.Generator().manual_seed(how.seed)
    windows, reader = readings.windows, readings.lab.reader
    keep = windows.n_tokens - RAW_TOKENS
    texts = []
    with readings.lab.progress.stage("write continuations", how.n_continuations) as advance:
        for _ in range(how.n_continuations):
            texts.append(write_on(reader, windows.token_ids, keep, generator))
            advance(1)
    return texts


def _fitted(
    lab: Lab,
    windows: Windows,
    texts: Sequence[Indices],
    slots: int,
    how: CeilingSettings,
    advance: Callable[[int], None],
) -> Floats:
    """Fit all windows, as many at a time as teacher logits fit into memory."""
    (mean,) = (arm for arm in lab.arms if (arm.name, arm.slots) == (BASELINE, slots))
    start = encode_windows(mean.encoder, lab.adapter, windows, dtype="f4")[1]
    start = start[:, : (windows.n_tokens - RAW_TOKENS) // BLOCK]
    table = lab.adapter.embedding_table()
    rho = float(np.sqrt(np.square(table).mean(axis=1)).mean())
    per_window = len(texts) * (RAW_TOKENS - 1) * lab.adapter.info.vocab_size
    step = max(1, _LOGITS_HELD // per_window)
    parts = []
    for at in range(0, len(windows), step):
        piece = slice(at, at + step)
        tell = advance if at == 0 else _nobody
        parts.append(fit(lab.reader, [one[piece] for one in texts], start[piece], rho, how, tell))
    return np.concatenate(parts)


def _teacher(reader: Reader, token_ids: Tensor) -> Tensor:
    """Return what the full context predicts for the counted tokens, log float32[n, 95, vocab]."""
    n_tokens = token_ids.shape[1]
    with torch.no_grad():
        laid = reader.lay_out(token_ids, np.arange(n_tokens - 1), {})
        logits = reader.logits(laid, counted_tail(n_tokens) - 1)
        return functional.log_softmax(logits.float(), dim=-1)


def _nobody(_: int) -> None:
    """Tell nobody."""
