"""Entry point of megacontext-reference: names the weights beside it and who runs them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from megacontext_sdk import GistEncoderSpec, ModelAdapterSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["megacontext_gist_encoders", "megacontext_model_adapters"]

_PACKAGE = "megacontext_reference"
_GISTS = Path(__file__).with_name("weights") / "gist"
_SUMMARIES = {
    "gistnet": "Gists of the reference model: a small network over each block alone",
    "contextual": "Gists of the reference model: its lower layers read each block in context",
}
"""By kind. The first one that is here is what new memories take: `gistnet` keeps up with an append
on a laptop, so no `mean` gist stands in meanwhile; `contextual` keeps more and costs a prefill."""


@hookimpl
def megacontext_model_adapters() -> Iterator[ModelAdapterSpec]:
    """Offer `model="reference"`.

    The weights were trained on windows of 1,024 tokens, whatever their config says.
    """
    yield ModelAdapterSpec(
        "reference",
        "megacontext_hf.adapter:open_packaged",
        "A small model of our own: simple English and facts from the conversation, offline",
        requires="megacontext-reference",
        options={"package": _PACKAGE, "trained_window": "1024"},
        gist=next((f"reference-{kind}" for kind in _trained()), ""),
    )


@hookimpl
def megacontext_gist_encoders() -> Iterator[GistEncoderSpec]:
    """Offer `gist="reference-gistnet"` and `gist="reference-contextual"`, as far as trained."""
    for kind in _trained():
        yield GistEncoderSpec(
            f"reference-{kind}",
            f"megacontext_gistnet.encoder:open_{kind}",
            _SUMMARIES[kind],
            requires="megacontext-gistnet",
            options={"package": _PACKAGE, "name": f"reference-{kind}"},
        )


def _trained() -> list[str]:
    """Return the kinds whose weights and code are both here, the default first."""
    if find_spec("megacontext_gistnet") is None:
        return []
    return [kind for kind in _SUMMARIES if (_GISTS / f"{kind}.safetensors").is_file()]
