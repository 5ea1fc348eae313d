"""Entry point of megacontext-hf: names the adapter, imports neither torch nor transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacontext_sdk import ModelAdapterSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["megacontext_model_adapters"]


@hookimpl
def megacontext_model_adapters() -> Iterator[ModelAdapterSpec]:
    """Offer `model="hf:<folder or hub id>"`."""
    yield ModelAdapterSpec(
        "hf",
        "megacontext_hf.adapter:open_hf",
        "Causal language models of transformers with rotary positions",
        requires="megacontext-hf",
    )
