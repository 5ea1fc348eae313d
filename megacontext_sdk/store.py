"""`MemoryStore`: many memories below one folder, one namespace per tenant.

A store maps names to directories and opens sessions in them; it keeps no index, no cache and no
state, so any number of stores, threads and processes may work on one folder. There is no call that
sees two namespaces.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megacontext_sdk.assembly import assemble
from megacontext_sdk.contracts.disk import REAL_DISK
from megacontext_sdk.contracts.storage import NO_OPTIONS
from megacontext_sdk.errors import ConfigError, SessionNotFoundError, StorageError, shown
from megacontext_sdk.memory.directory.durable import remove_tree, write_file
from megacontext_sdk.memory.directory.locks import DirectoryLock
from megacontext_sdk.memory.directory.manifest import read_meta
from megacontext_sdk.memory.directory.paths import (
    check_directory,
    check_location,
    check_parent,
    translated,
)
from megacontext_sdk.plugins import Plugins, default_plugins
from megacontext_sdk.session import MemorySession
from megacontext_sdk.snapshots import check_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megacontext_sdk.contracts.storage import Storage

__all__ = ["MemoryStore"]

_MEMORY = ".mc"  # tells the directory of a memory from that of a namespace below this one
_LABEL = "NAMESPACE"
_MAX_LABEL = 256
_TRASH = ".deleted-"
_ARGUMENTS = (
    *("model", "storage", "focus", "gist", "config", "read_only", "create", "at", "plugins"),
)  # of `MemorySession.open`; the others are settings
_log = logging.getLogger(__name__)


class MemoryStore:
    """Memories of one tenant, by name.

    May be shared between threads. Sessions are those of `MemorySession`: one writer per memory.

    Args:
        root: a folder that exists; each tenant gets a folder of its own in it.
        namespace: whose memories these are: a name, or several such as `("acme", "alice")`.
        **defaults: arguments of `MemorySession.open` for every session, such as `model="echo"`.

    Raises:
        ConfigError: no namespace, or one that is no name; a root that is no folder.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from megacontext_sdk import MemoryStore
        >>> folder = TemporaryDirectory()
        >>> store = MemoryStore(folder.name, namespace="acme", model="echo")
        >>> with store.session("alice") as session:
        ...     receipt = session.append("My cat is called Turing.")
        >>> store.list()
        ('alice',)
        >>> MemoryStore(folder.name, namespace="globex").list()
        ()
        >>> store.delete("alice")
        >>> folder.cleanup()
    """

    def __init__(
        self, root: str | Path, *, namespace: str | tuple[str, ...], **defaults: object
    ) -> None:
        self._root = check_location(root)
        if not check_directory(self._root):
            message = f"{self._root} does not exist, so no memories can be kept in it; create it"
            raise ConfigError(message, field="root", value=str(self._root))
        self._namespace = _checked_namespace(namespace)
        self._defaults = defaults

    @property
    def namespace(self) -> tuple[str, ...]:
        """Whose memories these are."""
        return self._namespace

    def session(self, name: str, **arguments: Any) -> MemorySession:  # noqa: ANN401 - MemorySession.open types them
        """Open the memory of a name, creating it if there is none.

        Args:
            name: 1 to 128 ASCII letters, digits, "_" or "-"; `Alice` is not `alice`.
            **arguments: as for `MemorySession.open`, before the defaults of the store.

        Raises:
            ConfigError: no such name, or a storage that keeps nothing on disk.
            SessionNotFoundError: no memory, and `create=False` or `read_only=True`.
            StorageError: see `MemorySession.open`.
        """
        checked = check_name(name, "name")
        given: dict[str, Any] = {**self._defaults, **arguments}
        if "path" in given:
            message = "a store chooses the directory itself; leave out path"
            raise ConfigError(message, field="path", value=shown(given["path"]))
        plugins = given.get("plugins")
        if plugins is None or isinstance(plugins, Plugins):  # opening refuses anything else
            _check_storage(plugins or default_plugins(), given.get("storage"))
        is_new = given.get("create", True) is True and given.get("read_only", False) is False
        folder = self._folder(create=is_new)
        path = folder / (_directory_name(checked) + _MEMORY)
        if not is_new and not check_directory(path):
            raise self._not_found(checked)
        _check_owner(path, checked)
        named = {key: given.pop(key) for key in _ARGUMENTS if key in given}
        parts = assemble(path, **named, settings=given, name=checked)
        return MemorySession(parts)

    def list(self) -> tuple[str, ...]:
        """Return the names of the memories in this namespace, sorted.

        A memory whose MEMORY file is damaged is listed, too, if its directory still tells the name.
        """
        folder = self._folder(create=False)
        if not folder.is_dir():
            return ()
        return tuple(sorted(name for path in _memories(folder) if (name := _name_of(path))))

    def delete(self, name: str) -> None:
        """Remove a memory and everything in its directory, snapshots and rescued data included.

        Forks, exports and copies are other directories and stay.

        Raises:
            ConfigError: no such name.
            SessionLockedError: somebody has it open.
            SessionNotFoundError: there is no memory of that name.
        """
        checked = check_name(name, "name")
        folder = self._folder(create=False)
        path = folder / (_directory_name(checked) + _MEMORY)
        if not check_directory(path):
            raise self._not_found(checked)
        _check_owner(path, checked)
        lock = DirectoryLock(path)
        with translated(path):
            try:
                lock.acquire_write(concurrent_readers=False)
                # From here on nobody finds it, and a crash leaves a name that is swept next time.
                doomed = path.with_name(_TRASH + secrets.token_hex(8))
                path.rename(doomed)
                REAL_DISK.sync_directory(folder)
            finally:
                lock.close_descriptors()
            _sweep(folder)

    def __repr__(self) -> str:
        """Say where."""
        return f"<MemoryStore {self._root} namespace={'/'.join(self._namespace)}>"

    # -- directories ----------------------------------------------------------------------------

    def _folder(self, *, create: bool) -> Path:
        """Return the folder of the namespace; parts differ in case only by their hashes."""
        folder = self._root
        for part in self._namespace:
            if create:
                check_parent(folder)
            folder /= _directory_name(part)
            with translated(folder):
                _enter_namespace(folder, part, create=create)
        return folder

    def _not_found(self, name: str) -> SessionNotFoundError:
        where = "/".join(self._namespace)
        return SessionNotFoundError(
            f"there is no memory {name!r} in namespace {where}; list() tells which there are",
            path=str(self._root),
        )


def _checked_namespace(namespace: object) -> tuple[str, ...]:
    parts = (namespace,) if isinstance(namespace, str) else namespace
    if not isinstance(parts, tuple) or not parts:
        message = (
            f"namespace={shown(namespace)} names nobody; give a name or a tuple of names. There "
            "is no namespace that holds all others"
        )
        raise ConfigError(message, field="namespace", value=shown(namespace))
    return tuple(check_name(part, "namespace") for part in parts)


def _directory_name(name: str) -> str:
    """Return a name that no file system confuses with another: lower case, and a hash of it all."""
    return f"{name.lower()}-{blake2b(name.encode(), digest_size=4).hexdigest()}"


def _enter_namespace(folder: Path, part: str, *, create: bool) -> None:
    """Make the folder of a namespace if wanted, and check whose it is.

    Raises:
        ConfigError: a link, no folder, or the folder of another namespace.
    """
    if create and not check_directory(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
    label = folder / _LABEL
    if create and not label.exists():
        _put_label(label, part)
    if not check_directory(folder) or not label.exists():
        return
    descriptor = REAL_DISK.open(label, os.O_RDONLY)
    try:
        found = os.read(descriptor, _MAX_LABEL)
    finally:
        os.close(descriptor)
    if found != part.encode():
        message = f"{folder} belongs to another namespace than {part!r}; choose another name"
        raise ConfigError(message, field="namespace", value=part)


def _put_label(label: Path, part: str) -> None:
    """Write whose folder it is, whole at once: others may be coming in at the same time."""
    draft = label.with_name(f"{_LABEL}.{secrets.token_hex(8)}")
    write_file(REAL_DISK, draft, part.encode())
    with contextlib.suppress(FileExistsError):
        REAL_DISK.link(draft, label)
    draft.unlink()


def _check_owner(path: Path, name: str) -> None:
    """Refuse the memory of another name whose hash happens to be the same."""
    if not check_directory(path):
        return
    try:
        meta = read_meta(path)
    except StorageError:
        return  # opening it will say what is wrong
    if meta is not None and _known_name(meta.name, path) not in {name, None}:
        message = f"{path} is the memory of another name than {name!r}; choose another name"
        raise ConfigError(message, field="name", value=name)


def _check_storage(plugins: Plugins, storage: object) -> None:
    """Refuse a backend that keeps nothing on disk: its memories could not be found again."""
    if storage is not None and not isinstance(storage, str):
        return  # opening says what is wrong
    name = storage or "duckdb"
    made: Storage = plugins.resolve("storage", name)(Path("data"), NO_OPTIONS)  # type: ignore[assignment]
    if not made.capabilities.local:
        message = f"storage {name!r} keeps nothing on disk, so a store cannot find it again"
        raise ConfigError(message, field="storage", value=name)


def _memories(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name.endswith(_MEMORY) and entry.is_dir() and not entry.is_symlink():
            yield entry


def _name_of(path: Path) -> str | None:
    """Return the name of a memory as it was given, None if nothing tells it."""
    try:
        meta = read_meta(path)
    except StorageError as error:
        _log.warning("%s is listed but cannot be read: %s", path, type(error).__name__)
        return _known_name("", path)
    return None if meta is None else _known_name(meta.name, path)


def _known_name(noted: str, path: Path) -> str | None:
    """Return the noted name, else the directory's if that was in lower case all along."""
    stem = path.name.removesuffix(_MEMORY)
    for name in (noted, stem.rpartition("-")[0]):
        if name and _directory_name(name) == stem:
            return name
    return None


def _sweep(folder: Path) -> None:
    """Remove what deletions left; links inside are removed, never followed."""
    for entry in folder.iterdir():
        if entry.name.startswith(_TRASH) and not entry.is_symlink():
            remove_tree(REAL_DISK, entry)
    REAL_DISK.sync_directory(folder)
