"""Every hook a plugin may implement: its signature, its promise, and a whole plugin that uses it.

Catalogue hooks run once per load and yield records; lifecycle hooks are few and never run per
token. This module calls nothing: the loader is `plugins.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from megacontext_sdk.records import (
        AllocatorSpec,
        CommandSpec,
        FocusPolicySpec,
        GenerateRequest,
        GistEncoderSpec,
        ModelAdapterSpec,
        PositionSchemeSpec,
        RuntimeContext,
        RuntimeSpec,
        SinkSpec,
        StorageSpec,
    )
    from megacontext_sdk.session import MemorySession

__all__ = [
    "PROJECT",
    "hookimpl",
    "megacontext_allocators",
    "megacontext_around_generate",
    "megacontext_choose_runtime",
    "megacontext_commands",
    "megacontext_focus_policies",
    "megacontext_gist_encoders",
    "megacontext_model_adapters",
    "megacontext_position_schemes",
    "megacontext_runtimes",
    "megacontext_session_closed",
    "megacontext_session_opened",
    "megacontext_storages",
    "megacontext_telemetry_sinks",
]

PROJECT = "megacontext"
"""Name of the pluggy project, and of the entry-point group."""

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin as the implementation of the hook it is named after."""

_hookspec = pluggy.HookspecMarker(PROJECT)


@_hookspec
def megacontext_storages() -> Iterable[StorageSpec]:
    """Offer storages, chosen by `MemorySession.open(path, storage="acme")`.

    Example::

        from megacontext_sdk import StorageSpec, hookimpl


        @hookimpl
        def megacontext_storages():
            yield StorageSpec("acme", "acme_memory.store:AcmeStorage", "Blocks in Acme Cloud")
    """


@_hookspec
def megacontext_model_adapters() -> Iterable[ModelAdapterSpec]:
    """Offer models, chosen by `model="acme"` or `model="acme:<argument>"`.

    Example::

        from megacontext_sdk import ModelAdapterSpec, hookimpl


        @hookimpl
        def megacontext_model_adapters():
            yield ModelAdapterSpec(
                "acme",
                "acme_models.adapter:open_model",
                "Acme's small models",
                requires="acme-models",
                options={"device": "cpu"},
            )
    """


@_hookspec
def megacontext_gist_encoders() -> Iterable[GistEncoderSpec]:
    """Offer gist encoders, chosen by `gist="acme"` or `gist="acme:<argument>"`.

    Example::

        from megacontext_sdk import GistEncoderSpec, hookimpl


        @hookimpl
        def megacontext_gist_encoders():
            yield GistEncoderSpec(
                "acme",
                "acme_gist.encoder:open_encoder",
                "First token of a block",
                options={"level": "1"},
            )
    """


@_hookspec
def megacontext_focus_policies() -> Iterable[FocusPolicySpec]:
    """Offer focus policies, chosen by `focus="acme"`.

    Example::

        from megacontext_sdk import FocusPolicySpec, hookimpl


        @hookimpl
        def megacontext_focus_policies():
            yield FocusPolicySpec("acme", "acme_focus.policy:AcmeFocus", "Longest words first")
    """


@_hookspec
def megacontext_allocators() -> Iterable[AllocatorSpec]:
    """Offer allocators, chosen by the setting `allocator="acme"`.

    Example::

        from megacontext_sdk import AllocatorSpec, hookimpl


        @hookimpl
        def megacontext_allocators():
            yield AllocatorSpec("acme", "acme_focus.allocator:AcmeAllocator", "One move at a time")
    """


@_hookspec
def megacontext_position_schemes() -> Iterable[PositionSchemeSpec]:
    """Offer position schemes, chosen by the setting `positions="acme"`.

    Example::

        from megacontext_sdk import PositionSchemeSpec, hookimpl


        @hookimpl
        def megacontext_position_schemes():
            yield PositionSchemeSpec("acme", "acme_positions:Acme", "Every second position")
    """


@_hookspec
def megacontext_runtimes() -> Iterable[RuntimeSpec]:
    """Offer runtime loops, chosen by the setting `runtime="acme"` or by `choose_runtime`.

    Example::

        from megacontext_sdk import RuntimeSpec, hookimpl


        @hookimpl
        def megacontext_runtimes():
            yield RuntimeSpec(
                "acme",
                "acme_loop.loop:AcmeLoop",
                "Decodes on Acme cards",
                probe="acme_loop.probe:usable",
                rank=100,
            )
    """


@_hookspec
def megacontext_telemetry_sinks() -> Iterable[SinkSpec]:
    """Offer telemetry sinks, chosen by the setting `sinks=("acme",)`; every chosen one gets all.

    Example::

        from megacontext_sdk import SinkSpec, hookimpl


        @hookimpl
        def megacontext_telemetry_sinks():
            yield SinkSpec("acme", "acme_telemetry.sink:AcmeSink", "Events to Acme's collector")
    """


@_hookspec
def megacontext_commands() -> Iterable[CommandSpec]:
    """Offer commands, run as `megacontext acme`, or with a group as `megacontext train acme`.

    The module of a command is imported at each start of `megacontext`: keep it light, and import
    heavy libraries inside the function. Its errors of our tree, `OSError` and `ValueError` are
    shown as one line, with exit status 1.

    Example::

        from megacontext_sdk import CommandSpec, hookimpl


        @hookimpl
        def megacontext_commands():
            yield CommandSpec("acme", "acme_memory.commands:sync", "Send a memory to Acme Cloud")
            yield CommandSpec(
                "acme", "acme_memory.commands:train", "Train Acme's encoder", group="train"
            )
    """


@_hookspec(firstresult=True)
def megacontext_choose_runtime(context: RuntimeContext) -> str | None:
    """Choose the runtime loop of a session that asks for `runtime="auto"`; None passes.

    The built-in is tried last and takes the highest `rank` whose `probe` passes; a tie is an
    error. If an implementation raises, a warning is logged and the built-in decides.

    Example::

        from megacontext_sdk import hookimpl


        @hookimpl
        def megacontext_choose_runtime(context):
            return "plain" if context.info.device == "cpu" else None
    """


@_hookspec
def megacontext_session_opened(session: MemorySession) -> None:
    """Learn that a session was opened. Only notifies: an exception is logged, nothing more.

    Example::

        import logging

        from megacontext_sdk import hookimpl


        @hookimpl
        def megacontext_session_opened(session):
            logging.getLogger("acme").info("opened %r", session)
    """


@_hookspec
def megacontext_session_closed(session: MemorySession, error: BaseException | None) -> None:
    """Learn that a session was closed, and by which error, if any. Only notifies.

    Example::

        import logging

        from megacontext_sdk import hookimpl


        @hookimpl
        def megacontext_session_closed(session, error):
            logging.getLogger("acme").info("closed %r after %s", session, type(error).__name__)
    """


@_hookspec
def megacontext_around_generate(request: GenerateRequest) -> AbstractContextManager[None]:
    """Surround one reply, streamed or not: entered before it, left also when the caller stops.

    It may raise on entry, then this generate fails and nothing was changed; it cannot swallow an
    exception of the reply.

    Example::

        from contextlib import nullcontext

        from megacontext_sdk import hookimpl


        @hookimpl
        def megacontext_around_generate(request):
            if request.max_new_tokens > 4096:
                raise RuntimeError("the quota is 4096 tokens per reply")
            return nullcontext()
    """
