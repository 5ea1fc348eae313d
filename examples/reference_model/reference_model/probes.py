"""Can the model look back? Facts told in a conversation it never saw, and asked for later.

The answer must be exact to the last token, as greedy decoding would give it. The same questions
show what the history is worth: their answers' loss with and without it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import attrs
import numpy as np
import torch

from megacontext_gistnet.corpus import Renderer, Source, Turn, tell_facts
from megacontext_gistnet.corpus.fact_kinds import NAMES, UNSEEN_NAMES
from megacontext_gistnet.corpus.facts import read_filler

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from megacontext_hf.tokenizer import HfTokenizer
    from megacontext_sdk.contracts.arrays import Ids
    from megacontext_sdk.contracts.model import ModelInfo

__all__ = ["Probe", "ProbeResult", "make_probes", "run_probes"]

_FACTS = 5
_DROP_TOKENS = 96
_BATCH = 16


@attrs.frozen(eq=False)
class Probe:
    """One question about a fact told earlier.

    Attributes:
        kind: of the fact.
        prompt: the conversation, ending where the answer begins; int32[n].
        answer: the exact answer and the end of the message; int32[m].
    """

    kind: str
    prompt: Ids
    answer: Ids


@attrs.frozen
class ProbeResult:
    """What a model makes of some probes of one kind.

    Attributes:
        n: how many.
        right: share answered exactly by greedy decoding.
        full, drop: loss of the answers in nats per token, with the whole conversation in view and
            with its last 96 tokens only.
    """

    n: int
    right: float
    full: float
    drop: float


def make_probes(
    n: int,
    data: Sequence[Path],
    tokenizer: HfTokenizer,
    info: ModelInfo,
    *,
    seed: int = 0,
    are_names_unseen: bool = False,
) -> list[Probe]:
    """Make probes: five facts told, other talk from held-out texts, one of them asked for.

    The fact asked for stands from a hundred tokens to half a window before the question.

    Args:
        n: how many.
        data: texts for the talk in between.
        tokenizer: the model's.
        info: the model's.
        seed: of facts and talk; none is that of a training document.
        are_names_unseen: tell them about people whose names no training fact uses.
    """
    rng = random.Random(f"reference model probes {seed} {are_names_unseen}")
    filler = _held_out_filler(data)
    renderer = Renderer(tokenizer, info)
    names = UNSEEN_NAMES if are_names_unseen else NAMES
    (end,) = tokenizer.encode("<|end|>", special=True)
    probes = []
    for _ in range(n):
        facts = tell_facts(_FACTS, rng, names)
        asked = rng.choice(facts)
        told = [Turn("user", fact.statement) for fact in facts]
        room = rng.randint(100, max(101, info.trained_window // 2)) * 3
        talk = _talk(filler, rng, room)
        prompt = renderer.chat([*told, *talk, Turn("user", asked.question)], reply_next=True)
        answer = np.append(tokenizer.encode(asked.answer), end).astype(np.int32)
        probes.append(Probe(asked.kind, prompt[-info.trained_window + len(answer) :], answer))
    return probes


def run_probes(model: nn.Module, probes: Sequence[Probe]) -> dict[str, ProbeResult]:
    """Ask all of them; return results by kind, and "all" of them first."""
    full = [_answered(model, probes[at : at + _BATCH], None) for at in _batches(probes)]
    drop = [_answered(model, probes[at : at + _BATCH], _DROP_TOKENS) for at in _batches(probes)]
    table = [
        (probe.kind, *one, other[1])
        for probe, one, other in zip(probes, sum(full, []), sum(drop, []), strict=True)  # noqa: RUF017
    ]
    found = {"all": _summary([row[1:] for row in table])}
    for kind in sorted({probe.kind for probe in probes}):
        found[kind] = _summary([row[1:] for row in table if row[0] == kind])
    return found


def _batches(probes: Sequence[Probe]) -> range:
    return range(0, len(probes), _BATCH)


def _summary(rows: list[tuple[float, float, float]]) -> ProbeResult:
    right, full, drop = np.mean(rows, axis=0)
    return ProbeResult(len(rows), float(right), float(full), float(drop))


def _answered(
    model: nn.Module, probes: Sequence[Probe], last: int | None
) -> list[tuple[float, float]]:
    """Return `(1.0 if right, mean loss of the answer)` of each probe.

    Greedy decoding gives an answer exactly when each of its tokens is the likeliest behind those
    before it, so one forward pass tells.

    Args:
        model: a causal language model.
        probes: a batch.
        last: keep as many tokens of each prompt; None keeps all.
    """
    prompts = [probe.prompt if last is None else probe.prompt[-last:] for probe in probes]
    rows = [np.append(prompt, probe.answer) for prompt, probe in zip(prompts, probes, strict=True)]
    logits = _logits(model, rows)
    found = []
    for at, (prompt, probe) in enumerate(zip(prompts, probes, strict=True)):
        first = len(prompt) - 1  # the row that predicts the answer's first token
        part = logits[at, first : first + len(probe.answer)].float()
        wanted = torch.from_numpy(probe.answer.astype(np.int64)).to(part.device)
        loss = torch.nn.functional.cross_entropy(part, wanted)
        found.append((float((part.argmax(-1) == wanted).all()), float(loss)))
    return found


def _logits(model: nn.Module, rows: list[Ids]) -> Tensor:
    """Return logits of rows padded behind, which a causal model cannot see: [B, T, vocab]."""
    device = next(model.parameters()).device
    batch = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for at, row in enumerate(rows):
        batch[at, : len(row)] = row
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        logits: Tensor = model(input_ids=torch.from_numpy(batch).to(device), use_cache=False).logits
    return logits


def _held_out_filler(data: Sequence[Path]) -> list[tuple[Turn, ...]]:
    """Return talk from held-out texts; from all of them where so few texts have no held-out one."""
    sides: dict[bool, list[tuple[Turn, ...]]] = {False: [], True: []}
    for is_held_out, turns in read_filler([Source(path, style="chat") for path in data]):
        if is_held_out or len(sides[False]) < 100:
            sides[is_held_out].append(turns)
    return sides[True] or sides[False]


def _talk(filler: list[tuple[Turn, ...]], rng: random.Random, characters: int) -> list[Turn]:
    talk: list[Turn] = []
    while sum(len(turn.text) for turn in talk) < characters:
        for turn in rng.choice(filler):
            left = characters - sum(len(one.text) for one in talk)
            talk += [Turn(turn.role, turn.text[: max(80, left)])] if left > 0 else []
    return talk
