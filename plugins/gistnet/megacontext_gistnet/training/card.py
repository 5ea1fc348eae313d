"""The model card of a run's weights, as Markdown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from megacontext_gistnet.nets.model import GistModel
    from megacontext_gistnet.training.validation import Found

__all__ = ["card_text"]


def card_text(model: GistModel, facts: Mapping[str, str], found: Mapping[int, Found]) -> str:
    """Return the card: what it is, for which base, from which data, how good by validation."""
    n_parameters = sum(one.numel() for one in model.parameters())
    lines = [
        f"# {model.kind} for {facts['base']}",
        "",
        (
            f"Gist encoder of megacontext-gistnet: {n_parameters:,} parameters, 32 tokens to up to "
            f"{model.slots} rows."
        ),
        "",
        "| | |",
        "|---|---|",
        f"| base | {facts['base']}, fingerprint `{facts['base_fingerprint'][:16]}` |",
        f"| shape | `{model.config.to_json()}` |",
        f"| data | {_data(facts)} |",
        (
            f"| training | {facts['steps']} steps, {facts['minutes']} minutes on "
            f"{facts['device']}, seed {facts['seed']} |"
        ),
        f"| start | {facts['init'] or 'mean gists'} |",
        "",
        "## Held-out windows, last 96 tokens raw",
        "",
    ]
    if not found:
        return "\n".join([*lines, "Not validated.", ""])
    lines += ["| level | slots | R, all tokens | R, recall tokens |", "|---|---|---|---|"]
    lines += [
        f"| LOD{lod} | {slots} | {one.all[slots]:.3f} | {one.recall[slots]:.3f} |"
        for lod, one in sorted(found.items())
        for slots in one.all
    ]
    lines += ["", "`megacontext eval gists` measures with intervals, floors and ceilings.", ""]
    return "\n".join(lines)


def _data(facts: Mapping[str, str]) -> str:
    names = sorted({str(one["name"]) for one in json.loads(facts["sources"])})
    counts = json.loads(facts["tokens"])
    told = ", ".join(f"{n:,} {domain}" for domain, n in counts.items())
    return f"{', '.join(names)}; tokens: {told}"
