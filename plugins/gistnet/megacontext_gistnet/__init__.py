"""Entry point of megacontext-gistnet: names encoders and commands, imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacontext_sdk import CommandSpec, GistEncoderSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["megacontext_commands", "megacontext_gist_encoders"]


@hookimpl
def megacontext_commands() -> Iterator[CommandSpec]:
    """Offer `megacontext train gistnet` and `megacontext eval gists`."""
    yield CommandSpec(
        "gistnet",
        "megacontext_gistnet.commands.train_gistnet:train_gistnet",
        "Train a gist encoder for a frozen base on a folder of text",
        group="train",
        requires="megacontext-gistnet",
    )
    yield CommandSpec(
        "gists",
        "megacontext_gistnet.commands.eval_gists:eval_gists",
        "Measure gist encoders on held-out text, between floors and ceiling",
        group="eval",
        requires="megacontext-gistnet",
    )


@hookimpl
def megacontext_gist_encoders() -> Iterator[GistEncoderSpec]:
    """Offer `gist="gistnet:<weights>"` and `gist="contextual:<weights>"`."""
    yield GistEncoderSpec(
        "gistnet",
        "megacontext_gistnet.encoder:open_gistnet",
        "A small network over the tokens of one block: fast, knows no context",
        requires="megacontext-gistnet",
    )
    yield GistEncoderSpec(
        "contextual",
        "megacontext_gistnet.encoder:open_contextual",
        "The frozen base reads the block after its left context; the best gists of a memory",
        requires="megacontext-gistnet",
    )
