"""The recipe of a training run: every number that decides what is learned, in one record.

It says nothing about where data lies, how long a run may take or on which device it runs; two runs
with one recipe, one seed, one base and the same data learn the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import attrs
import msgspec

from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "GPU_CHANGES",
    "Layouts",
    "Losses",
    "Recipe",
    "Stage",
    "parse_recipe",
    "read_recipe",
    "recipe_bytes",
    "refuse_other_recipe",
]


def _share(record: object, field: attrs.Attribute[Any], value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(
            f"{type(record).__name__}.{field.name} is {value}; give a share between 0 and 1",
            field=field.name,
            value=value,
        )


def _positive(record: object, field: attrs.Attribute[Any], value: float) -> None:
    if not value > 0:
        raise ConfigError(
            f"{type(record).__name__}.{field.name} is {value}; give a number above 0",
            field=field.name,
            value=value,
        )


@attrs.frozen(kw_only=True)
class Layouts:
    """Which blocks of a window a step replaces by gists.

    Attributes:
        tail: how often all blocks but the last `tail_blocks` are replaced, as in deployment and in
            the evaluation; else a share of the blocks at random places.
        tail_blocks: blocks that stay raw at the end in that case.
        least, most: bounds of the share of blocks replaced in the other case.
        first_raw: how often the first block stays raw, as a pinned system prompt would.
        bos_token: how often the first token is replaced by the base's BOS, so that windows look
            like beginnings of histories, too.
        bos_row: how often a BOS row stands in front of all rows, as an attention sink.
    """

    tail: float = attrs.field(default=0.5, validator=_share)
    tail_blocks: int = attrs.field(default=3, validator=_positive)
    least: float = attrs.field(default=0.3, validator=_share)
    most: float = attrs.field(default=1.0, validator=_share)
    first_raw: float = attrs.field(default=0.3, validator=_share)
    bos_token: float = attrs.field(default=0.5, validator=_share)
    bos_row: float = attrs.field(default=0.1, validator=_share)


@attrs.frozen(kw_only=True)
class Losses:
    """Weights of the parts of the loss; a part of weight 0 is not computed.

    Attributes:
        kl: KL(P_full || P_gist), each token weighted by its importance.
        nll: the plain next-token loss over the gists.
        reconstruction: the frozen base rebuilds a block from its gist behind a learned prompt.
        contrast: InfoNCE between the gists of a window and later states of the same window.
        diversity: neighbouring gists that are closer than 0.2 in cosine distance.
        weight_floor, weight_cap: a token weighs `floor + clip(NLL_drop - NLL_full, 0, cap)`.
        reconstruction_blocks: how many blocks of a batch are rebuilt in a step.
    """

    kl: float = 1.0
    nll: float = 0.1
    reconstruction: float = 0.0
    contrast: float = 0.0
    diversity: float = 0.0
    weight_floor: float = 0.1
    weight_cap: float = 3.0
    reconstruction_blocks: int = attrs.field(default=16, validator=_positive)


def _frozen(values: Mapping[str, float]) -> Mapping[str, float]:
    return MappingProxyType(dict(values))


@attrs.frozen(kw_only=True)
class Stage:
    """One stretch of a run.

    Attributes:
        name: for progress and curves.
        share: of the run's time or steps; shares of all stages are normalised.
        lr: peak learning rate of each parameter group that learns: "head", "lora", "levels",
            and "extra" for what only training needs (prompt, contrast). Others are frozen.
        lr_start, lr_end: factors at the stage's begin and end, a half cosine between.
        lod: 1 replaces blocks by LOD1 gists; 2 also 32 of them by their parent.
        window_blocks: blocks of a window in this stage; 0: the recipe's window.
        batch_ratio: windows per step against the recipe's batch, for longer windows.
        losses: weights of the loss.
        layouts: which blocks are replaced.
        plateau: the stage ends when the loss fell by less than this share over `plateau_steps`;
            0: only time ends it. A stage that decays its learning rate needs its time.
        rises: the stage ends, at its best weights, after so many rises in validation in a row.
        margin: only what is so far below the best R counts as one.
    """

    name: str
    share: float = attrs.field(validator=_positive)
    lr: Mapping[str, float] = attrs.field(converter=_frozen, hash=False)
    lr_start: float = 1.0
    lr_end: float = 0.03
    lod: int = attrs.field(default=1, validator=attrs.validators.in_((1, 2)))
    window_blocks: int = 0
    batch_ratio: float = attrs.field(default=1.0, validator=_positive)
    losses: Losses = Losses()
    layouts: Layouts = Layouts()
    plateau: float = attrs.field(default=0.0, validator=_share)
    plateau_steps: int = attrs.field(default=1_000, validator=_positive)
    rises: int = attrs.field(default=3, validator=_positive)
    margin: float = attrs.field(default=0.01, validator=_share)


_HEAD: Final = Stage(
    name="head", share=0.03, lr={"head": 2e-3, "extra": 1e-3}, lr_end=1.0, plateau=0.05
)
_SUBSTITUTION: Final = Stage(
    name="substitution", share=0.85, lr={"head": 2e-3, "lora": 2e-3, "extra": 1e-3}
)
_LEVELS: Final = Stage(
    name="levels",
    share=0.12,
    lr={"levels": 2e-3, "extra": 1e-3},
    lod=2,
    window_blocks=38,
    batch_ratio=0.5,
)


@attrs.frozen(kw_only=True)
class Recipe:
    """All of a run but data, length and device.

    Attributes:
        stages: the curriculum, in order.
        batch: windows of a step, over all devices together.
        window_tokens: length of a window, a multiple of 32.
        slots: how often a step reads so many slots of each gist, by slots.
        mix: share of windows by domain; domains without data are left out. Empty: by tokens.
        at_start: share of windows that begin where a document begins.
        made_up_facts: made-up conversations that tell facts and ask for them, added to the data.
        shape: changes to the encoder's shape, by the names of its configuration.
        matrices: what matrices descend by, "muon" or "adamw"; all else descends by AdamW.
        betas, weight_decay, clip: of AdamW, of both, and of the gradient's norm.
        warmup_steps: the learning rate rises over so many steps at the begin of each stage.
        prompt_rows: rows of the learned prompt of the reconstruction loss.
        contrast_size, contrast_temperature: width and temperature of the contrastive loss.
        validation_windows: held-out windows per domain.
        validation_slots: slots for which R is measured during training.
        least_recall_share: a base for which fewer of the held-out tokens gain 0.5 nat from the
            context is refused: with nothing to recover there is nothing to learn.
    """

    stages: tuple[Stage, ...] = (_HEAD, _SUBSTITUTION, _LEVELS)
    batch: int = attrs.field(default=8, validator=_positive)
    window_tokens: int = attrs.field(default=512)
    slots: Mapping[str, float] = attrs.field(
        default={"1": 0.5, "2": 0.15, "4": 0.35}, converter=_frozen, hash=False
    )
    mix: Mapping[str, float] = attrs.field(
        default={"story": 0.3, "dialogue": 0.3, "facts": 0.2, "code": 0.15, "text": 0.05},
        converter=_frozen,
        hash=False,
    )
    at_start: float = attrs.field(default=0.1, validator=_share)
    made_up_facts: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    shape: Mapping[str, int | float] = attrs.field(factory=dict, converter=_frozen, hash=False)
    matrices: Literal["muon", "adamw"] = attrs.field(
        default="muon", validator=attrs.validators.in_(("muon", "adamw"))
    )
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = attrs.field(default=1.0, validator=_positive)
    warmup_steps: int = attrs.field(default=50, validator=_positive)
    prompt_rows: int = attrs.field(default=2, validator=_positive)
    contrast_size: int = attrs.field(default=64, validator=_positive)
    contrast_temperature: float = attrs.field(default=0.1, validator=_positive)
    validation_windows: int = attrs.field(default=16, validator=_positive)
    validation_slots: tuple[int, ...] = (1, 4)
    least_recall_share: float = attrs.field(default=0.005, validator=_share)

    def __attrs_post_init__(self) -> None:
        """Refuse what no run could follow."""
        if not self.stages:
            raise ConfigError("the recipe has no stage; give one", field="stages", value=())
        for stage in self.stages:
            _check_window(self.window_of(stage), stage)
        if not all(name.isdigit() and int(name) > 0 for name in self.slots) or not self.slots:
            raise ConfigError(
                f"slots is {dict(self.slots)}; give shares by slots, as in {{'1': 1.0}}",
                field="slots",
                value=dict(self.slots),
            )

    def window_of(self, stage: Stage) -> int:
        """Return the tokens of a window in this stage."""
        return 32 * stage.window_blocks or self.window_tokens

    def batch_of(self, stage: Stage) -> int:
        """Return the windows of a step in this stage."""
        return max(1, round(self.batch * stage.batch_ratio))

    def with_learning_rate(self, lr: float) -> Recipe:
        """Return the recipe with every rate scaled so that the highest is `lr`."""
        highest = max(rate for stage in self.stages for rate in stage.lr.values())
        stages = [
            attrs.evolve(stage, lr={name: rate * lr / highest for name, rate in stage.lr.items()})
            for stage in self.stages
        ]
        return attrs.evolve(self, stages=tuple(stages))


GPU_CHANGES: Final[Mapping[str, Any]] = MappingProxyType(
    {"batch": 64, "warmup_steps": 100, "validation_windows": 48}
)
"""What the preset `gpu` changes: one large GPU is idle with eight windows a step."""


def _check_window(n_tokens: int, stage: Stage) -> None:
    n_blocks, rest = divmod(n_tokens, 32)
    least = stage.layouts.tail_blocks + (33 if stage.lod > 1 else 1)
    if rest or n_blocks < least:
        raise ConfigError(
            f"stage {stage.name!r} has windows of {n_tokens} tokens; give a multiple of 32 of at "
            f"least {32 * least}",
            field="window_tokens",
            value=n_tokens,
        )


def recipe_bytes(recipe: Recipe) -> bytes:
    """Return the recipe as JSON, indented; equal recipes give equal bytes."""
    plain = msgspec.to_builtins(_thawed(recipe))
    return msgspec.json.format(msgspec.json.encode(plain, order="sorted"), indent=2)


def _thawed(value: object) -> object:
    """Return plain containers: msgspec writes no read-only mappings."""
    if attrs.has(type(value)):
        fields = attrs.fields(cast("type[attrs.AttrsInstance]", type(value)))
        return {field.name: _thawed(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): _thawed(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return [_thawed(one) for one in value]
    return value


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; what the file leaves out has its default.

    Raises:
        ConfigError: not JSON, a field that does not exist, or a value of the wrong type.
    """
    return parse_recipe(path.read_bytes(), str(path))


def parse_recipe(text: bytes, name: str = "the text") -> Recipe:
    """Return the recipe of a JSON text; see `read_recipe`.

    Raises:
        ConfigError: not JSON, a field that does not exist, or a value of the wrong type.
    """
    try:
        values = msgspec.json.decode(text)
        _refuse_unknown(values, Recipe)
        return msgspec.convert(values, Recipe)
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{name} is no recipe: {error}; correct it, or start from the recipe.json of a run",
            field="recipe",
            value=name,
        ) from error


def refuse_other_recipe(found: Recipe, wanted: Recipe) -> None:
    """Refuse to go on with a run under another recipe.

    Raises:
        ConfigError: they differ; names the fields.
    """
    names = [field.name for field in attrs.fields(Recipe)]
    differ = [name for name in names if getattr(found, name) != getattr(wanted, name)]
    if differ:
        raise ConfigError(
            f"the run to resume has another recipe: {', '.join(differ)} differ; resume with the "
            "options it was started with, or train in another folder",
            field="recipe",
            value=differ,
        )


def _refuse_unknown(values: object, record: type[attrs.AttrsInstance]) -> None:
    """Refuse names that no field has: msgspec passes over them, and a run would, too."""
    known = {field.name for field in attrs.fields(record)}
    for name, value in values.items() if isinstance(values, dict) else ():
        if name not in known:
            raise ConfigError(
                f"a {record.__name__} has no {name!r}; it has {', '.join(sorted(known))}",
                field=str(name),
                value=value,
            )
        for part in value if isinstance(value, list) else (value,):
            if (inner := _RECORDS.get(str(name))) is not None:
                _refuse_unknown(part, inner)


_RECORDS: Final[Mapping[str, type[attrs.AttrsInstance]]] = {
    "stages": Stage,
    "losses": Losses,
    "layouts": Layouts,
}
