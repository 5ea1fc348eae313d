"""The commands that plugins offer: `megacontext acme`, and in groups `megacontext train acme`.

A plugin never replaces a command of ours, and of two plugins that offer the same words neither
wins. What cannot be added is left out with one line on stderr; all other commands stay usable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import typer

from megacontext_sdk._cli.plainly import plainly
from megacontext_sdk.errors import DuplicateProviderError, MegaContextError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from megacontext_sdk.catalogue import Catalogue, Provider
    from megacontext_sdk.records import CommandSpec

__all__ = ["add_offered"]

_OURS = "megacontext-sdk"


def add_offered(app: typer.Typer, catalogue: Catalogue) -> None:
    """Add the commands of plugins, one sub-application for each of their groups.

    Args:
        app: the application; it has our own commands already.
        catalogue: what plugins offer.
    """
    ours = frozenset(str(command.name) for command in app.registered_commands)
    offered = catalogue.of_kind("command")
    groups: dict[str, typer.Typer] = {}
    for provider in offered:
        spec = _spec(provider)
        try:
            _refuse_clash(provider, offered, ours)
            command = plainly(provider.load())
        except MegaContextError as error:
            typer.secho(f"left out: {error}", fg="yellow", err=True)
            continue
        if spec.group and spec.group not in groups:
            groups[spec.group] = _new_group(app, spec.group, offered)
        groups.get(spec.group, app).command(spec.name, help=spec.summary)(command)


def _new_group(app: typer.Typer, group: str, offered: Sequence[Provider]) -> typer.Typer:
    members = [spec.name for spec in map(_spec, offered) if spec.group == group]
    made = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
    app.add_typer(made, name=group, help=f"Commands of plugins: {', '.join(members)}.")

    @made.callback()
    def keep_the_group() -> None:
        """Typer would fold a group of one command into that command."""

    return made


def _refuse_clash(provider: Provider, offered: Sequence[Provider], ours: Collection[str]) -> None:
    """Refuse words that lead to something else, too.

    Raises:
        DuplicateProviderError: we, or another plugin, have a command of these words, or a command
            where this one has a group, or a group where this one has a command.
    """
    spec = _spec(provider)
    word = spec.group or spec.name
    owners = [_OURS] if word in ours else []
    owners += [one.owner for one in offered if one is provider or _is_clash(spec, _spec(one))]
    if len(owners) == 1:
        return
    raise DuplicateProviderError(
        f"command {spec.full_name!r} of plugin {provider.owner} uses words that are offered by "
        f"{' and by '.join(dict.fromkeys(owners))}; rename its command or group, or name the "
        "plugins you trust in MEGACONTEXT_PLUGINS",
        kind="command",
        name=spec.full_name,
        owners=tuple(owners),
    )


def _is_clash(one: CommandSpec, other: CommandSpec) -> bool:
    if one.full_name == other.full_name:
        return True
    has_group, other_has = bool(one.group), bool(other.group)
    return has_group != other_has and (one.group or one.name) == (other.group or other.name)


def _spec(provider: Provider) -> CommandSpec:
    return cast("CommandSpec", provider.spec)
