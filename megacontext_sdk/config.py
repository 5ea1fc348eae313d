"""Settings: one frozen tree, filled from defaults, a TOML file, the environment and keywords.

Every setting has one flat name, which is its keyword, its key in its TOML table, and, in upper case
behind `MEGACONTEXT_`, its environment variable. Values are checked here, at the edge; no other
module checks them again. Which provider exists is not known here.
"""

from __future__ import annotations

import os
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import attrs

from megacontext_sdk import settings as kinds
from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from megacontext_sdk.contracts.focus import Budget
    from megacontext_sdk.contracts.telemetry import TelemetrySink

__all__ = [
    "ENV_PREFIX",
    "Config",
    "FocusSettings",
    "GistSettings",
    "RuntimeSettings",
    "StorageSettings",
    "TelemetrySettings",
]

ENV_PREFIX = "MEGACONTEXT_"

RESERVED_ENV = frozenset(
    {"MEGACONTEXT_PLUGINS", "MEGACONTEXT_STRICT_PLUGINS", "MEGACONTEXT_TRACE_PLUGINS"}
)
"""Variables of the plugin loader, which are no settings of a session."""

_AUTO_W_MAX = 8192
_AUTO_REPLY_ROWS = 128
_REPLY_ROWS = 64
_COVER_ROWS = 32


@attrs.frozen(kw_only=True)
class FocusSettings:
    """Budget and rules of the working context; names and meaning as in `contracts.focus.Budget`."""

    w_max: int | None = kinds.integer(None, 64, 2**20, "rows of the working context; unset: auto")
    headroom: int = kinds.integer(64, 32, 2**16, "rows kept free at each block boundary")
    recent_tokens: int | None = kinds.integer(
        None, 0, 2**20, "newest tokens always shown in full; unset: 256, or 128 under 1,024 rows"
    )
    sink_blocks: int = kinds.integer(1, 0, 64, "first blocks always shown in full")
    pin_share: float = kinds.number(0.25, 0.0, 1.0, "largest share of w_max that pins may take")
    tau_expand: float = kinds.number(0.2, 0.0, 1.0, "score above which detail is asked for")
    tau_collapse: float = kinds.number(0.2, 0.0, 1.0, "score below minus which detail is offered")
    n_diff: int = kinds.integer(4, 1, 1024, "actions per iteration")
    max_iterations: int = kinds.integer(16, 1, 1024, "iterations at a user turn or bulk append")
    decode_price: float = kinds.number(
        0.3, 0.0, 1.0, "score beyond the thresholds that a move must be worth while decoding"
    )
    cooldown: int = kinds.integer(2, 0, 1024, "iterations in which the opposite action is blocked")
    hysteresis: float = kinds.number(0.1, 0.0, 1.0, "extra score an early reversal needs")
    hysteresis_iterations: int = kinds.integer(8, 0, 1024, "how long a reversal counts as early")
    allocator: str = kinds.name("greedy", "turns scores into moves")
    positions: str = kinds.name("compact", "gives rows their position ids")


@attrs.frozen(kw_only=True)
class GistSettings:
    """How gists are made and kept."""

    gist_slots: int = kinds.choice(1, (1, 2, 4), "vectors per gist")
    gist_dtype: str = kinds.choice("i1", ("i1", "f2", "f4"), "number format of stored gists")
    gist_cache_rows: int = kinds.integer(8192, 0, 2**24, "gists kept in RAM")
    gist_background: str = kinds.choice(
        "auto", ("auto", "on", "off"), "who makes gists; auto: a thread where the encoder is slow"
    )
    strict_encoder: bool = kinds.flag(
        default=False, doc="refuse a memory whose gists are another encoder's"
    )


@attrs.frozen(kw_only=True)
class RuntimeSettings:
    """The loop, and how the window of keys and values is kept true."""

    runtime: str = kinds.name("auto", 'the loop; "auto" takes the best one usable here')
    kv_mode: Literal["exact", "stale", "seam"] = kinds.choice(
        "seam", ("exact", "stale", "seam"), "what is recomputed to the right of a swap"
    )
    seam_rows: int = kinds.integer(16, 0, 4096, "rows recomputed after each seam in mode seam")
    kv_cache_bytes: int = kinds.integer(32 * 2**20, 0, 2**40, "RAM for keys and values off window")
    rebuild_after_swaps: int = kinds.integer(16, 0, 2**20, "swaps before an exact rebuild is due")
    rebuild_stale_ratio: float = kinds.number(0.5, 0.0, 1.0, "stale share that makes one due")
    audit_limit_nats: float = kinds.number(0.2, 0.0, 100.0, "audit result that makes one due")
    strict: bool = kinds.flag(default=False, doc="raise on the first broken invariant")


@attrs.frozen(kw_only=True)
class StorageSettings:
    """Durability and locking of the memory's directory."""

    durability: str = kinds.name(
        "sync", "what `append` waits for; the storage knows the words", what="a word"
    )
    lock_timeout_seconds: float | None = kinds.number(
        None, 0.0, 86_400.0, "how long to wait for another writer; unset: do not wait"
    )
    allow_network_fs: bool = kinds.flag(default=False, doc="accept a network file system")
    adopt_model: bool = kinds.flag(
        default=False, doc="let a memory of another base with the same tokenizer be this one's"
    )


@attrs.frozen(kw_only=True)
class TelemetrySettings:
    """Who receives events."""

    sinks: tuple[str | TelemetrySink, ...] = kinds.sinks(("logging",), "who receives events")


_GROUPS: dict[str, type[attrs.AttrsInstance]] = {
    "focus": FocusSettings,
    "gist": GistSettings,
    "runtime": RuntimeSettings,
    "storage": StorageSettings,
    "telemetry": TelemetrySettings,
}


def _group_of(name: str) -> str | None:
    return next((g for g, cls in _GROUPS.items() if name in attrs.fields_dict(cls)), None)


@attrs.frozen(kw_only=True)
class Config:
    """All settings of a session.

    Example:
        >>> Config.load(environ={}, w_max=896).focus.w_max
        896
    """

    focus: FocusSettings = attrs.field(factory=FocusSettings)
    gist: GistSettings = attrs.field(factory=GistSettings)
    runtime: RuntimeSettings = attrs.field(factory=RuntimeSettings)
    storage: StorageSettings = attrs.field(factory=StorageSettings)
    telemetry: TelemetrySettings = attrs.field(factory=TelemetrySettings)

    @classmethod
    def load(
        cls,
        path: Path | str | None = None,
        environ: Mapping[str, str] | None = None,
        **settings: object,
    ) -> Config:
        """Return the settings: keywords before environment before file before defaults.

        Args:
            path: a TOML file with the tables focus, gist, runtime, storage, telemetry.
            environ: the environment, `os.environ` unless given.
            **settings: flat names.

        Raises:
            ConfigError: an unknown name, a value out of range, an unreadable file.
        """
        env = os.environ if environ is None else environ
        from_file = {} if path is None else _read_toml(Path(path))
        return cls().replace(**{**from_file, **_read_environ(env), **settings})

    def replace(self, **settings: object) -> Config:
        """Return a copy with some settings changed, by flat name.

        Raises:
            ConfigError: an unknown name or a value out of range.
        """
        changes: dict[str, dict[str, Any]] = {}
        for name, value in settings.items():
            group = _group_of(name)
            if group is None:
                raise _unknown("setting", name, value, self.names())
            changes.setdefault(group, {})[name] = value
        groups = {g: attrs.evolve(getattr(self, g), **new) for g, new in changes.items()}
        return attrs.evolve(self, **groups)

    @staticmethod
    def names() -> tuple[str, ...]:
        """Return the flat names of all settings, sorted."""
        return tuple(sorted(name for cls in _GROUPS.values() for name in attrs.fields_dict(cls)))

    def to_dict(self) -> dict[str, object]:
        """Return all settings by flat name."""
        values = (getattr(self, group) for group in _GROUPS)
        return {f.name: getattr(v, f.name) for v in values for f in attrs.fields(type(v))}

    def budget(self, trained_window: int) -> Budget:
        """Return the budget for a model, automatic values resolved.

        Args:
            trained_window: rows the model was trained on.

        Raises:
            ConfigError: `w_max` is larger than the trained window allows, or too small to hold
                the protected rows and a cover of the history.
        """
        from megacontext_sdk.contracts.focus import Budget

        focus = self.focus
        w_max = min(_AUTO_W_MAX, trained_window - _AUTO_REPLY_ROWS)
        if focus.w_max is not None:
            w_max = focus.w_max
        recent_tokens = 128 if w_max < 1024 else 256
        if focus.recent_tokens is not None:
            recent_tokens = focus.recent_tokens
        self._check_room(w_max, recent_tokens, trained_window)
        if focus.positions == "compact" and w_max + _REPLY_ROWS > trained_window:
            raise ConfigError(
                f"w_max={w_max} needs {w_max + _REPLY_ROWS} rows with those of a reply, but the "
                f"model was trained on {trained_window}; set w_max to at most "
                f"{trained_window - _REPLY_ROWS}",
                field="w_max",
                value=w_max,
                trained_window=trained_window,
            )
        same = {f.name for f in attrs.fields(Budget)} & set(attrs.fields_dict(FocusSettings))
        rules = {name: getattr(focus, name) for name in same - {"w_max", "recent_tokens"}}
        slots = self.gist.gist_slots
        return Budget(w_max=w_max, recent_tokens=recent_tokens, gist_slots=slots, **rules)

    def _check_room(self, w_max: int, recent_tokens: int, trained_window: int) -> None:
        focus = self.focus
        cover = _COVER_ROWS * self.gist.gist_slots
        needed = focus.headroom + 32 * focus.sink_blocks + recent_tokens + cover
        if w_max >= needed:
            return
        fix = "raise w_max or lower recent_tokens"
        if focus.w_max is None:
            fix = f"the model was trained on {trained_window} rows only: lower recent_tokens"
        raise ConfigError(
            f"w_max={w_max} is below the {needed} rows needed: {recent_tokens} newest tokens, "
            f"{focus.sink_blocks} first blocks, {focus.headroom} rows of headroom and {cover} for "
            f"a cover of the history; {fix}",
            field="w_max",
            value=w_max,
            needed=needed,
        )


def _unknown(what: str, name: str, value: object, known: tuple[str, ...]) -> ConfigError:
    close = get_close_matches(name, known, n=1)
    hint = f'did you mean "{close[0]}"?' if close else f"there are: {', '.join(known)}"
    return ConfigError(f"there is no {what} {name!r}; {hint}", field=name, value=value)


def _read_toml(path: Path) -> dict[str, object]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the configuration {path} cannot be read: {error}; correct the file or its path",
            field="config",
            value=str(path),
        ) from error
    found: dict[str, object] = {}
    for table, settings in tables.items():
        if table not in _GROUPS or not isinstance(settings, dict):
            raise _unknown(f"table in {path}, such as", table, settings, tuple(_GROUPS))
        known = tuple(attrs.fields_dict(_GROUPS[table]))
        for name, value in settings.items():
            if name not in known:
                raise _misplaced(path, table, name, value, known)
            found[name] = value
    return found


def _misplaced(
    path: Path, table: str, name: str, value: object, known: tuple[str, ...]
) -> ConfigError:
    home = _group_of(name)
    if home is None:
        return _unknown(f"setting in [{table}] of {path},", name, value, known)
    return ConfigError(
        f"{name!r} stands in [{table}] of {path}; move it to [{home}]", field=name, value=value
    )


def _read_environ(environ: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable in RESERVED_ENV:
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        group = _group_of(name)
        if group is None:
            known = tuple(ENV_PREFIX + one.upper() for one in Config.names())
            raise _unknown("environment variable", variable, text, known)
        field = attrs.fields_dict(_GROUPS[group])[name]
        found[name] = kinds.parse(field, text)
    return found
