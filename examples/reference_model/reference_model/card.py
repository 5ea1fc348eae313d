"""The model card: what was trained on what, for how long, and every figure that was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from reference_model.checkpoint import Progress
    from reference_model.heldout import ContextGain
    from reference_model.presets import Preset
    from reference_model.probes import ProbeResult

__all__ = ["Figures", "write_card"]


@attrs.frozen(kw_only=True)
class Figures:
    """Everything measured on a finished model.

    Attributes:
        n_parameters: weights, tied ones once.
        corpus: tokens of each domain in the training data.
        held_out: nats per token by domain and layout.
        gains: what older text is worth.
        probes: facts asked for, by kind, "all" first.
        unseen: the same for names that no training fact uses.
        samples: beginnings, and what the model made of them.
    """

    n_parameters: int
    corpus: dict[str, int]
    held_out: dict[str, float]
    gains: dict[str, ContextGain]
    probes: dict[str, ProbeResult]
    unseen: dict[str, ProbeResult]
    samples: list[tuple[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return attrs.asdict(self)


def write_card(preset: Preset, progress: Progress, figures: Figures, where: str) -> str:
    """Return the card as Markdown.

    Args:
        preset: what was decided.
        progress: what was done.
        figures: what was measured.
        where: the machine, in words.
    """
    millions = progress.tokens / 1e6
    speed = progress.tokens / max(progress.seconds, 1e-9)
    corpus = ", ".join(f"{name} {n / 1e6:.1f} M" for name, n in figures.corpus.items())
    head = f"""\
# A reference language model ({preset.name})

Made by `examples/reference_model/train.py` of megacontext_sdk. Llama format of transformers,
bfloat16 safetensors, byte-level BPE with single digits, chat template.

| | |
|---|---|
| Model | {figures.n_parameters / 1e6:.2f} M parameters: {_shape(preset)} |
| Trained window | {preset.window} tokens |
| Training | {millions:.1f} M tokens in {progress.step} steps, {progress.seconds / 60:.1f} minutes |
| Machine | {where}; {speed:,.0f} tokens per second |
| Data | tokens by domain: {corpus} |
"""
    return "\n".join([head, *_losses(figures), *_recall(figures), *_samples(figures)])


def _shape(preset: Preset) -> str:
    return (
        f"{preset.n_layers} layers, width {preset.hidden_size}, {preset.n_heads} heads with "
        f"{preset.n_kv_heads} key-value heads, MLP {preset.mlp_size}, {preset.vocab_size} entries, "
        "tied embeddings"
    )


def _losses(figures: Figures) -> list[str]:
    lines = """\
## Held-out text

Nats per token on documents that were never trained on. The last three columns are the last 95 of
512 tokens: with all 512 in view, with the last 96 only, and the difference.

| text | loss | in view | dropped | worth |
|---|---|---|---|---|""".splitlines()
    for name, loss in figures.held_out.items():
        gain = figures.gains.get(name)
        shown = f"{gain.full:.3f} | {gain.drop:.3f} | {gain.gain:.3f}" if gain else "— | — | —"
        lines.append(f"| {name} | {loss:.3f} | {shown} |")
    return [*lines, ""]


def _recall(figures: Figures) -> list[str]:
    lines = """\
## Facts from the conversation

Told with four others, then other talk, then asked for; an answer counts when greedy decoding gives
it exactly. The losses are those of the answers' tokens, with the conversation and with its last 96
tokens: the difference is what context is worth.

| kind | questions | right | loss | loss without | worth |
|---|---|---|---|---|---|""".splitlines()
    rows = [*figures.probes.items()]
    rows += [("all, names never seen in a fact", figures.unseen["all"])] if figures.unseen else []
    for kind, one in rows:
        lines.append(
            f"| {kind} | {one.n} | {one.right:.0%} | {one.full:.2f} | {one.drop:.2f} | "
            f"{one.drop - one.full:.2f} |"
        )
    return [*lines, ""]


def _samples(figures: Figures) -> list[str]:
    lines = ["## What it writes", ""]
    for begun, written in figures.samples:
        quoted = f"{begun}** {written}".replace("\n", "\n> ")
        lines += [f"> **{quoted}", ""]
    return lines
