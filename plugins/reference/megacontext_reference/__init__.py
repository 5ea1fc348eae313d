"""Entry point of megacontext-reference: names the weights beside it and who runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacontext_sdk import ModelAdapterSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["megacontext_model_adapters"]


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
        options={"package": "megacontext_reference", "trained_window": "1024"},
    )
