"""Weight files as users name them: found, read once, and matched with the base in use."""

from __future__ import annotations

import hashlib
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from megacontext_gistnet.nets.model import read_header, weights_digest
from megacontext_sdk.errors import ConfigError, ModelError, ModelMismatchError

if TYPE_CHECKING:
    from megacontext_gistnet.nets.model import WeightFile
    from megacontext_sdk.contracts.model import ModelInfo

__all__ = ["Weights", "find_weights"]

_BLOCK = 32


@attrs.frozen(kw_only=True)
class Weights:
    """A weight file and what it is.

    Attributes:
        path: the file.
        header: shape and origin.
        digest: sha256 of the whole file.
    """

    path: Path
    header: WeightFile
    digest: str

    def check_base(self, info: ModelInfo) -> None:
        """Refuse a base or tokenizer the encoder was not trained for.

        Raises:
            ModelMismatchError: names both, and what to do.
        """
        header = self.header
        pairs = (
            ("tokenizer", header.tokenizer_fingerprint, info.tokenizer_fingerprint),
            ("base", header.base_fingerprint, info.fingerprint),
        )
        for kind, trained, given in pairs:
            if trained != given:
                raise ModelMismatchError(
                    f"{self.path.name} was trained for the {kind} {trained[:12]}…, but the model "
                    f"{info.name!r} has {given[:12]}…; open the memory with the model it was "
                    "trained for, train an encoder for this one with `megacontext train gistnet`, "
                    'or say gist="mean"',
                    kind=kind,
                    stored=trained,
                    given=given,
                )

    def fingerprint(self, info: ModelInfo, gist_slots: int) -> str:
        """Return the digest of all a gist depends on.

        Raises:
            ModelMismatchError: as `check_base`.
        """
        self.check_base(info)
        facts = (
            f"{self.header.kind}/1",
            self.digest,
            self.header.config.to_json(),
            f"S={gist_slots}",
            f"K={_BLOCK}",
            info.fingerprint,
            info.tokenizer_fingerprint,
        )
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def find_weights(kind: str, argument: str, package: str, gist_slots: int) -> Weights:
    """Return the weights of `gist="<kind>:<argument>"`, or those that a package ships.

    Args:
        kind: "gistnet" or "contextual".
        argument: a file, or a folder that holds `<kind>.safetensors`.
        package: import name of a package with `weights/gist/<kind>.safetensors`; "" for none.
        gist_slots: S, which must have been trained.

    Raises:
        ConfigError: neither a file nor a package, both, or slots that were not trained.
        ModelError: no such file, or it holds another kind of encoder.
    """
    path = _packaged(kind, argument, package) if package else _named(kind, argument)
    header = read_header(path)
    if header.kind != kind:
        raise ModelError(
            f'{path} holds a {header.kind}; say gist="{header.kind}:{path}"', path=str(path)
        )
    if gist_slots not in {1, 2, 4} or gist_slots > header.config.slots:
        raise ConfigError(
            f"gist_slots={gist_slots}, but {path.name} was trained for up to "
            f"{header.config.slots} (1, 2 or 4 of them); open the memory with such a number",
            field="gist_slots",
            value=gist_slots,
        )
    return Weights(path=path, header=header, digest=weights_digest(path))


def _named(kind: str, argument: str) -> Path:
    if not argument:
        raise ConfigError(
            f'gist="{kind}" needs weights; say gist="{kind}:<file or folder>" with what '
            "`megacontext train gistnet` wrote",
            field="gist",
            value=kind,
        )
    path = Path(argument).expanduser()
    return path / f"{kind}.safetensors" if path.is_dir() else path


def _packaged(kind: str, argument: str, package: str) -> Path:
    if argument:
        raise ConfigError(
            f"{argument!r}: the weights of this encoder are those of {package}; leave out what "
            f'follows the colon, or say gist="{kind}:{argument}"',
            field="gist",
            value=argument,
        )
    try:
        root = files(package)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"the package {package!r} is not installed; run `pip install "
            f"{package.replace('_', '-')}`",
            package=package,
        ) from error
    with as_file(root / "weights" / "gist" / f"{kind}.safetensors") as path:
        return path
