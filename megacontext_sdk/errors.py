"""Every error this SDK raises, as one tree that branches by what the caller can do next.

::

    MegaContextError
    ├─ ConfigError(ValueError)              change the call or the settings
    │   └─ QuotaError                       make the content smaller
    ├─ PluginError                          change the installation
    │   ├─ PluginLoadError
    │   ├─ UnknownProviderError(LookupError)
    │   └─ DuplicateProviderError
    ├─ StorageError                         look at the file, the lock or the disk
    │   ├─ SessionNotFoundError(FileNotFoundError)
    │   ├─ SessionLockedError
    │   ├─ SessionClosedError
    │   ├─ ReadOnlyError
    │   ├─ StorageFullError(OSError)
    │   ├─ FormatVersionError
    │   ├─ CorruptError
    │   │   ├─ CommittedDataLostError
    │   │   └─ BundleError
    │   ├─ DetailUnavailableError
    │   └─ ForgetBlockedError
    ├─ ModelError                           look at the model
    │   └─ ModelMismatchError               another model or encoder than the memory was made with
    ├─ BudgetError                          pins, tail and reply cannot fit the budget
    └─ InvariantError                       our bug: please report it
        ├─ BudgetExceededError              I1
        ├─ CoverageError                    I2
        ├─ ContiguityError                  I3
        ├─ AlignmentError                   I4
        ├─ LodError                         I5
        └─ ProtectionError                  I9, I10

A message names the thing, the value and the fix, and never holds memory content. The facts are
attributes too, and every error survives pickling.
"""

from __future__ import annotations

import reprlib

__all__ = [
    "AlignmentError",
    "BudgetError",
    "BudgetExceededError",
    "BundleError",
    "CommittedDataLostError",
    "ConfigError",
    "ContiguityError",
    "CorruptError",
    "CoverageError",
    "DetailUnavailableError",
    "DuplicateProviderError",
    "ForgetBlockedError",
    "FormatVersionError",
    "InvariantError",
    "LodError",
    "MegaContextError",
    "ModelError",
    "ModelMismatchError",
    "PluginError",
    "PluginLoadError",
    "ProtectionError",
    "QuotaError",
    "ReadOnlyError",
    "SessionClosedError",
    "SessionLockedError",
    "SessionNotFoundError",
    "StorageError",
    "StorageFullError",
    "UnknownProviderError",
]


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def shown(value: object) -> str:
    """Return a bad value for an error message: short, and whatever the value does.

    A caller may pass anything: text of a megabyte, lists in lists in lists, integers too long to
    print, objects whose `repr` raises. The refusal must be a typed error all the same.
    """
    try:
        return _REPR.repr(value)[:120]
    except Exception:  # noqa: BLE001 - any code of the value may run in its repr
        return f"<{type(value).__name__}>"


def _rebuild(
    kind: type[MegaContextError], args: tuple[object, ...], facts: dict[str, object]
) -> MegaContextError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class MegaContextError(Exception):
    """Base of every error of this SDK.

    Args:
        message: One sentence that names the thing, the value and the fix.
        **facts: What the sentence says, as attributes a program can read.
    """

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.__dict__.update(facts)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by class, args and facts, so that keyword facts survive."""
        return (_rebuild, (type(self), self.args, dict(self.__dict__)))

    def __str__(self) -> str:
        """Return the message alone, whatever the second base would print."""
        return str(self.args[0]) if self.args else type(self).__name__


class ConfigError(MegaContextError, ValueError):
    """A bad argument or setting: `field` names it, `value` is what was given."""

    field: str
    value: object


class QuotaError(ConfigError):
    """Content above a documented limit: `quota` names it, `limit` and `value` are sizes."""

    quota: str
    limit: int


class PluginError(MegaContextError):
    """The installation is at fault: a plugin is missing, broken or contested."""


class PluginLoadError(PluginError):
    """A provider exists, but its code cannot be imported or is no valid provider."""

    provider: str


class UnknownProviderError(PluginError, LookupError):
    """No provider has this name: `kind`, `name`, `available` and the `failures` of the load."""

    kind: str
    name: str
    available: tuple[str, ...]
    failures: tuple[str, ...]


class DuplicateProviderError(PluginError):
    """Two plugins offer the same name: `owners` are both."""

    kind: str
    name: str
    owners: tuple[str, ...]


class StorageError(MegaContextError):
    """The memory's directory, lock or disk is at fault."""

    path: str


class SessionNotFoundError(StorageError, FileNotFoundError):
    """There is no memory at `path` and the call may not create one."""


class SessionLockedError(StorageError):
    """Another writer or reader holds the memory: `holder`, `owner_pid`, `owner_host`, `since`."""

    holder: str
    owner_pid: int | None
    owner_host: str | None
    since: str | None


class SessionClosedError(StorageError):
    """The handle cannot be used any more: `reason` is "closed", "forked" or "failed"."""

    reason: str


class ReadOnlyError(StorageError):
    """A write to something opened, mounted or permitted for reading only: `why`."""

    why: str


class StorageFullError(StorageError, OSError):
    """The volume or quota is full: `needed` and `free` bytes, as far as known."""

    needed: int
    free: int


class FormatVersionError(StorageError):
    """A format this version does not read: `found` and `supported`."""

    found: object
    supported: object


class CorruptError(StorageError):
    """Stored bytes fail a check: `where`, `offset`, and `have_seq`, the last good commit."""

    where: str
    offset: int | None
    have_seq: int | None


class CommittedDataLostError(CorruptError):
    """Acknowledged commits are missing: the memory ends before `want_seq`."""

    want_seq: int


class BundleError(CorruptError):
    """A bundle breaks its format: `part` names the piece, `offset` where, `limit` what it exceeds.

    Raised before anything of that piece is allocated or written.
    """

    part: str
    limit: int | None


class DetailUnavailableError(StorageError):
    """The exact tokens of a span exist no more: `span`, and `why` (they were forgotten)."""

    span: object
    why: str


class ForgetBlockedError(StorageError):
    """Other memories still hold what should be forgotten: `holders` are their paths."""

    holders: tuple[str, ...]


class ModelError(MegaContextError):
    """The model cannot do what was asked of it."""


class ModelMismatchError(ModelError):
    """The memory was made with another model or encoder: `kind`, `stored`, `given` fingerprints."""

    kind: str
    stored: str
    given: str


class BudgetError(MegaContextError):
    """Pins, protected rows or the reply cannot fit: `needed` and `available` rows."""

    needed: int
    available: int


class InvariantError(MegaContextError):
    """A promise of the working context or storage was broken: `code`, `detail`, `epoch`."""

    code: str
    detail: str
    epoch: int | None


class BudgetExceededError(InvariantError):
    """I1: the entries cost more rows than the budget."""


class CoverageError(InvariantError):
    """I2: the entries do not cover the whole history."""


class ContiguityError(InvariantError):
    """I3: a gap or an overlap between neighbours."""


class AlignmentError(InvariantError):
    """I4: an entry does not start or end on a boundary of its level."""


class LodError(InvariantError):
    """I5: level, width and cost of an entry disagree."""


class ProtectionError(InvariantError):
    """I9, I10: an illegal move, or a protected span that is not at LOD0."""
