"""Recall of facts told long ago: the demo with other seeds, against a plain window.

The ceiling uses transformers alone: the same facts, the same questions, the same number of tokens
for the answer; the fact stands 200 tokens of real text before the question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from megacontext_sdk.demo import is_correct, make_facts
from megacontext_sdk.demo.run import Answer, DemoSettings, Summary, run_demo
from megacontext_sdk.demo.texts import open_library
from tests.benchmarks.figures import Limit, measured
from tests.benchmarks.models import open_reference
from tests.benchmarks.timing import bootstrap
from tests.benchmarks.workshop import W_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megacontext_hf.adapter import HfAdapter
    from megacontext_sdk.demo import Fact
    from tests.benchmarks.figures import Figure
    from tests.benchmarks.workshop import Workshop

__all__ = ["recall"]

_ANSWER_TOKENS = 12
_DISTANCE = 200
_SHARE = 0.85


def recall(workshop: Workshop) -> list[Figure]:
    """Share of facts answered from a long history, and from a plain window."""
    rows: list[tuple[bool, bool, bool, bool]] = []
    firsts: list[bool] = []
    for seed in workshop.scale.recall_seeds:
        answers = _ask_all(workshop, seed)
        plain = _Plain(open_reference(), seed)
        short = {fact: plain.answers(fact, filled=False) for fact in answers}
        full = {fact: plain.answers(fact, filled=True) for fact in answers}
        rows += [(a.is_right, short[f], full[f], a.saw_fact) for f, a in answers.items()]
        firsts.append(min(answers.values(), key=lambda a: a.told_at.start).is_right)
        workshop.notes += _misses(seed, answers, short)
    return _figures(workshop, np.array(rows), firsts)


def _figures(workshop: Workshop, table: np.ndarray, firsts: list[bool]) -> list[Figure]:
    right, ceiling, filled, saw = table.mean(axis=0)
    low, high = bootstrap(table, lambda t: float(t[:, 0].mean()))
    c_low, c_high = bootstrap(table, lambda t: float(t[:, 1].mean()))
    r_low, r_high = bootstrap(table, lambda t: float(t[:, 0].mean() / max(t[:, 1].mean(), 1e-9)))
    ratio = right / max(ceiling, 1e-9)
    found = f"first fact of the history right in {sum(firsts)} of {len(firsts)} histories"
    workshop.notes.append(
        f"recall: {right:.3f} [{low:.3f}, {high:.3f}] over ceiling {ceiling:.3f} "
        f"[{c_low:.3f}, {c_high:.3f}] is {ratio:.3f} [{r_low:.3f}, {r_high:.3f}], "
        f"{len(table)} questions; {found}; fact shown in full {saw:.3f}; right where shown "
        f"{_share(table[:, 0], table[:, 3]):.3f}; a plain window filled to {W_MAX} rows: "
        f"{filled:.3f} (95 % bootstrap intervals)"
    )
    return [
        measured(
            "recall_200k",
            right,
            f"85 % of recall_ceiling; the ratio is {ratio:.3f} [{r_low:.3f}, {r_high:.3f}] over "
            f"{len(table)} questions; {found}",
            Limit(_SHARE * ceiling, is_floor=True) if ceiling else None,
        ),
        measured(
            "recall_ceiling",
            ceiling,
            f"fact {_DISTANCE} tokens before the question, transformers alone; "
            f"[{c_low:.3f}, {c_high:.3f}]",
        ),
    ]


def _share(values: np.ndarray, where: np.ndarray) -> float:
    return float(values[where].mean()) if where.any() else float("nan")


def _ask_all(workshop: Workshop, seed: int) -> dict[Fact, Answer]:
    """Run the product's demo, asking for every fact."""
    scale = workshop.scale
    settings = DemoSettings(
        path=workshop.fresh(f"recall-{seed}.mc"),
        n_tokens=scale.recall_tokens,
        n_facts=scale.recall_facts,
        n_questions=scale.recall_facts,
        w_max=W_MAX,
        seed=seed,
    )
    answers: dict[Fact, Answer] = {}
    for item in run_demo(settings):
        if isinstance(item, Answer):
            answers[item.fact] = item
        if isinstance(item, Summary) and item.n_tokens < scale.recall_tokens:
            raise RuntimeError(f"the history has {item.n_tokens} tokens only")
    if set(answers) != set(make_facts(scale.recall_facts, seed)):
        raise RuntimeError("not every fact was asked for")
    return answers


def _misses(seed: int, answers: dict[Fact, Answer], short: dict[Fact, bool]) -> list[str]:
    """Say what went wrong, at most ten lines per history."""
    lines = [
        f"  seed {seed}: {f.question!r} -> {a.text[:40]!r}, told {f.text!r} at {a.told_at.start}, "
        f"{'shown' if a.saw_fact else 'not shown'}, plain window "
        f"{'right' if short[f] else 'wrong'}"
        for f, a in answers.items()
        if not a.is_right
    ]
    return lines[:10]


class _Plain:
    """The reference model alone, through transformers."""

    def __init__(self, adapter: HfAdapter, seed: int) -> None:
        self._model = adapter._model
        self._tokenizer = adapter.tokenizer._hf
        self._eos = list(adapter.info.eos_ids)
        self._turns = open_library().turns(seed + 1000)

    def answers(self, fact: Fact, *, filled: bool) -> bool:
        """Tell whether the model answers, `_DISTANCE` tokens after it was told."""
        told = {"role": "user", "content": fact.text}
        asked = {"role": "user", "content": fact.question}
        between = list(self._fill(_DISTANCE))
        room = W_MAX - self._count([told, *between, asked]) - _ANSWER_TOKENS
        before = list(self._fill(room)) if filled else []
        ids = self._encode([*before, told, *between, asked], reply=True)
        with torch.inference_mode():
            out = self._model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=_ANSWER_TOKENS,
                do_sample=False,
                eos_token_id=self._eos,
                pad_token_id=self._eos[0],
            )
        text = self._tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
        return is_correct(text, fact)

    def _encode(self, messages: list[dict[str, str]], *, reply: bool) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=reply, tokenize=False
        )
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _count(self, messages: list[dict[str, str]]) -> int:
        return len(self._encode(messages, reply=False))

    def _fill(self, n_tokens: int) -> Iterator[dict[str, str]]:
        """Yield real messages of `n_tokens` in all, the last one cut."""
        left = n_tokens
        while left > 8:
            turn = next(self._turns)
            ids = self._tokenizer(turn.text, add_special_tokens=False)["input_ids"][: left - 2]
            left -= len(ids) + 2
            yield {"role": turn.role, "content": self._tokenizer.decode(ids)}
