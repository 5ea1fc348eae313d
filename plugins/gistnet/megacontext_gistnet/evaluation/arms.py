"""Opens the encoders that are to be measured: by name, or from a weight file.

It resolves names the way a session does, so what is measured is what a session would use.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import attrs

from megacontext_gistnet.evaluation.floors import floors
from megacontext_gistnet.evaluation.lab import BASELINE, Arm
from megacontext_gistnet.nets.model import KINDS, read_header
from megacontext_gistnet.weights import Weights
from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from megacontext_sdk.contracts.gist import GistEncoder
    from megacontext_sdk.contracts.model import ModelInfo
    from megacontext_sdk.plugins import Plugins

__all__ = ["Asked", "asked", "facts_of", "open_arms"]

_SLOTS = (1, 2, 4)


@attrs.frozen
class Asked:
    """An encoder as the user asked for it.

    Attributes:
        name: what tables call it.
        gist: what a session would be given, `"name"` or `"name:argument"`.
    """

    name: str
    gist: str


def asked(names: Sequence[str]) -> tuple[Asked, ...]:
    """Read names of encoders, weight files and folders of them; `mean` always comes first.

    Args:
        names: "reference-contextual", "contextual:weights.safetensors", a weight file, or a folder
            that training wrote.

    Raises:
        ConfigError: a folder without weights.
        ModelError: a file that no training of ours wrote.
    """
    found = {BASELINE: Asked(BASELINE, BASELINE)}
    for text in names:
        for one in _asked(text):
            n_alike = sum(other.name == one.name for other in found.values())
            name = f"{one.name} #{n_alike + 1}" if n_alike else one.name
            found.setdefault(one.gist, Asked(name, one.gist))
    return tuple(found.values())


def open_arms(
    plugins: Plugins, encoders: Sequence[Asked], slots: Sequence[int], info: ModelInfo
) -> tuple[Arm, ...]:
    """Make every encoder at every number of slots, and the floors right behind `mean`.

    Args:
        plugins: who offers them.
        encoders: which.
        slots: numbers of rows per gist, of 1, 2 and 4.
        info: the base; an encoder that was trained for another one refuses it here.

    Raises:
        ConfigError: no slots, or others than 1, 2 and 4, or than were trained.
        UnknownProviderError: nobody offers a name.
        ModelMismatchError: weights of another base.
    """
    if not slots or any(one not in _SLOTS for one in slots):
        message = f"slots={list(slots)}; give some of 1, 2 and 4"
        raise ConfigError(message, field="slots", value=list(slots))
    arms = []
    for one in encoders:
        make = plugins.gist_factory(one.gist)
        for s in sorted(set(slots)):
            encoder = cast("GistEncoder", make(s))
            encoder.fingerprint(info)
            arms.append(Arm(one.name, s, encoder))
        if one.gist == BASELINE:
            by_slots = [floors(s) for s in sorted(set(slots))]
            kinds = zip(*by_slots, strict=True)
            arms += [Arm(floor.name, floor.gist_slots, floor) for kind in kinds for floor in kind]
    return tuple(arms)


def facts_of(encoder: GistEncoder) -> Mapping[str, str]:
    """Return what training wrote into an encoder's weight file, its kind and its digest."""
    weights = getattr(encoder, "weights", None)
    if not isinstance(weights, Weights):
        return {}
    return {
        **weights.header.facts,
        "kind": weights.header.kind,
        "weights_sha256": weights.digest,
    }


def _asked(text: str) -> Iterator[Asked]:
    path = Path(text)
    if path.is_dir():
        files = [path / f"{kind}.safetensors" for kind in KINDS]
        there = [file for file in files if file.is_file()]
        if not there:
            message = f"the folder {text} holds no weights; it needs {files[0].name} or the like"
            raise ConfigError(message, field="gist", value=text)
        yield from (Asked(f"{one.stem} ({path.name})", f"{one.stem}:{one}") for one in there)
    elif path.is_file() or text.endswith(".safetensors"):
        kind, colon, rest = text.partition(":")
        file = Path(rest) if colon and kind in KINDS else path
        kind = read_header(file).kind
        place = file.parent.name if file.stem in KINDS else file.stem
        yield Asked(f"{kind} ({place})", f"{kind}:{file}")
    else:
        yield Asked(text, text)
