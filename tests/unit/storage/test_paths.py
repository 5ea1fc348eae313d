"""Paths that may hold a memory, and those that may not."""

import errno
import logging
import os
from pathlib import Path

import pytest

from megacontext_sdk.errors import ConfigError, ReadOnlyError, StorageError, StorageFullError
from megacontext_sdk.memory.directory import paths


@pytest.mark.parametrize(
    "bad",
    [
        "s3://bucket/alice.mc",
        "https://user:secret@host/x",
        "file:///tmp/x",
        "file:x",
        "simplecache::s3://bucket/x",
        Path("s3://bucket/x"),
    ],
)
def test_row8_urls_are_refused_without_repeating_credentials(bad):
    with pytest.raises(ConfigError, match="local") as caught:
        paths.check_location(bad)
    assert "secret" not in str(caught.value) + str(caught.value.value)


@pytest.mark.parametrize("bad", ["", "a\0b", 7, None, b"bytes", ["x"], {"$ne": ""}])
def test_what_is_no_path_is_refused(bad):
    with pytest.raises(ConfigError) as caught:
        paths.check_location(bad)
    assert "path" == caught.value.field


def test_a_colon_alone_makes_no_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tmp_path / "notes:1.mc" == paths.check_location("notes:1.mc")


@pytest.mark.parametrize("kind", ["symlink", "file", "fifo", "dangling", "below-a-file"])
def test_row9_only_directories_are_accepted(tmp_path, kind):
    path = tmp_path / "alice.mc"
    if kind == "symlink":
        (tmp_path / "real").mkdir()
        path.symlink_to(tmp_path / "real")
    elif kind == "file":
        path.write_text("a note")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    else:
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "alice.mc"
    with pytest.raises(ConfigError):
        paths.check_directory(path)


def test_nothing_there_is_no_error(tmp_path):
    assert not paths.check_directory(tmp_path / "alice.mc")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_row9_directory_of_somebody_else_is_refused(tmp_path, monkeypatch):
    os.chown(tmp_path, 12_345, 12_345)
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    with pytest.raises(ConfigError, match="12345"):
        paths.check_directory(tmp_path)


def test_row10_world_writable_places_are_warned_about(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    tmp_path.chmod(0o777)
    paths.check_directory(tmp_path)
    paths.check_parent(tmp_path)
    assert 2 == len(caplog.records)
    caplog.clear()
    tmp_path.chmod(0o1777)  # sticky, as /tmp: nobody can replace what is ours
    paths.check_parent(tmp_path)
    assert [] == caplog.records


def test_missing_parent_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="create it first"):
        paths.check_parent(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("kind", "refused"),
    [("ext4", False), ("overlay", False), ("tmpfs", False)]
    + [(kind, True) for kind in ("nfs4", "cifs", "9p", "fuse.sshfs", "smb3", "fuse")],
)
def test_network_file_systems_are_refused(tmp_path, monkeypatch, kind, refused):
    device = tmp_path.stat().st_dev
    table = tmp_path / "mountinfo"
    table.write_text(
        f"1 0 {os.major(device)}:{os.minor(device)} / / rw shared:1 - {kind} /dev/x rw\n"
    )
    assert kind == paths._file_system(tmp_path, table)
    monkeypatch.setattr(paths, "_file_system", lambda _path: kind)
    if refused:
        with pytest.raises(ConfigError, match="allow_network_fs"):
            paths.check_mount(tmp_path)
    else:
        paths.check_mount(tmp_path)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EROFS, ReadOnlyError),
        (errno.EACCES, ReadOnlyError),
        (errno.ENOSPC, StorageFullError),
        (errno.EDQUOT, StorageFullError),
        (errno.ELOOP, ConfigError),
        (errno.EIO, StorageError),
    ],
)
def test_refusals_of_the_system_become_typed_errors(code, expected):
    with pytest.raises(expected), paths.translated(Path("alice.mc")):
        raise OSError(code, os.strerror(code), "alice.mc/LOCK")


def test_typed_errors_pass_translation_untouched():
    error = StorageFullError("full", needed=1, free=0)
    with pytest.raises(StorageFullError) as caught, paths.translated(Path("alice.mc")):
        raise error
    assert error is caught.value
