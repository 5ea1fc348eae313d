"""Many memories below one folder: every name finds its own memory, nobody finds another's."""

from __future__ import annotations

import logging
import os

import pytest

from megacontext_sdk import MemoryStore, errors

BAD_NAMES = [
    *("", " ", ".", "..", "../x", "/etc", "a/b", "a\\b", "a\0", "a\n", "\n", "-a", "_a", "a.b"),
    *("x" * 129, "x" * 300, "é", "e\u0301", "\u202ealice", "ali ce", "alice\u200b", "*", "%2e"),
    *(None, 1, 1.5, True, b"alice", ["alice"], ("alice",), {"$ne": ""}, object()),
]
BAD_NAMESPACES = [
    *(None, "", (), [], ["acme"], {"acme"}, {"$ne": None}, 7, True, b"acme", object()),
    *(("acme", ""), ("acme", None), ("acme", ".."), ("",), "a/b", "..", "*", "acme\n"),
]


def say(store, name, text):
    with store.session(name) as session:
        session.append(text)


def test_a_name_opens_the_same_memory_again(store):
    say(store(), "alice", "I prefer tea.")
    with store().session("alice") as session:
        assert "I prefer tea." in session[:]


def test_a_session_takes_the_arguments_of_open(store):
    with store(w_max=640).session("alice", w_max=768) as session:
        assert 768 == session.stats().w_max
    with store().session("alice", read_only=True) as session:
        assert 512 == session.stats().w_max
        with pytest.raises(errors.ReadOnlyError):
            session.append("no")


def test_names_are_listed_as_they_were_given(store):
    for name in ("Bob", "alice", "Zoe-2"):
        store().session(name).close()
    assert ("Bob", "Zoe-2", "alice") == store().list()


def test_nothing_is_listed_where_nothing_is(store, disk):
    assert () == store().list()
    assert [] == list(disk.folder.iterdir())


@pytest.mark.parametrize(
    "names", [("Alice", "alice", "ALICE"), ("CON", "con", "nul", "AUX"), ("a-1", "a_1")]
)
def test_row03_names_that_some_file_systems_confuse_are_apart(store, disk, names):
    for name in names:
        say(store(), name, f"This is the memory of {name}.")
    assert tuple(sorted(names)) == store().list()
    for name in names:
        with store().session(name) as session:
            assert f"This is the memory of {name}." == session.messages()[0].text
    (folder,) = disk.folder.iterdir()
    entries = [entry.name for entry in folder.iterdir()]
    assert len(entries) == len({entry.lower() for entry in entries})
    assert entries == [entry.lower() for entry in entries] or "NAMESPACE" in entries


@pytest.mark.parametrize("name", BAD_NAMES, ids=range(len(BAD_NAMES)))
def test_row01_and_02_a_bad_name_is_refused_by_every_call(store, disk, name):
    for call in (store().session, store().delete):
        with pytest.raises(errors.ConfigError) as caught:
            call(name)
        assert "name" == caught.value.field
    assert [] == list(disk.folder.iterdir())


@pytest.mark.parametrize("namespace", BAD_NAMESPACES, ids=range(len(BAD_NAMESPACES)))
def test_row04_there_is_no_store_without_a_namespace(store, namespace):
    with pytest.raises(errors.ConfigError) as caught:
        store(namespace)
    assert "namespace" == caught.value.field


def test_row04_a_namespace_cannot_be_left_out(disk):
    with pytest.raises(TypeError):
        MemoryStore(disk.folder)


def test_a_root_must_be_there(tmp_path):
    with pytest.raises(errors.ConfigError, match="does not exist"):
        MemoryStore(tmp_path / "none", namespace="acme")


def test_a_store_chooses_the_directory(store, tmp_path):
    with pytest.raises(errors.ConfigError) as caught:
        store().session("alice", path=tmp_path / "mine.mc")
    assert "path" == caught.value.field


@pytest.mark.parametrize("arguments", [{"plugins": "x"}, {"storage": 7}, {"colour": "red"}])
def test_what_open_refuses_is_refused(store, arguments):
    with pytest.raises(errors.ConfigError):
        store().session("alice", **arguments)


def test_a_storage_that_keeps_nothing_is_refused(store):
    with pytest.raises(errors.ConfigError) as caught:
        store(storage="memory").session("alice")
    assert "storage" == caught.value.field


@pytest.mark.parametrize("arguments", [{"create": False}, {"read_only": True}])
def test_asking_for_a_memory_that_is_not_there_makes_nothing(store, disk, arguments):
    with pytest.raises(errors.SessionNotFoundError, match="alice"):
        store().session("alice", **arguments)
    assert [] == list(disk.folder.iterdir())


def test_namespaces_do_not_see_each_other(store):
    for namespace in ("acme", "Acme", ("acme", "eu"), "globex"):
        say(store(namespace), "alice", f"I am of {namespace}.")
    for namespace in ("acme", "Acme", ("acme", "eu"), "globex"):
        with store(namespace).session("alice") as session:
            assert [f"I am of {namespace}."] == [m.text for m in session.messages()]
        assert ("alice",) == store(namespace).list()
    store("acme").delete("alice")
    assert () == store("acme").list()
    for namespace in ("Acme", ("acme", "eu"), "globex"):
        assert ("alice",) == store(namespace).list()


def test_a_memory_and_a_namespace_of_one_name_are_two_things(store):
    say(store("acme"), "eu", "A memory called eu.")
    say(store(("acme", "eu")), "alice", "A memory in a namespace called eu.")
    assert ("eu",) == store("acme").list()
    store("acme").delete("eu")
    assert ("alice",) == store(("acme", "eu")).list()


def test_deleting_removes_every_byte(store, disk):
    say(store(), "alice", "The zeppelin lands at noon.")
    say(store(), "bob", "I stay.")
    store().delete("alice")
    assert ("bob",) == store().list()
    files = [file for file in disk.folder.rglob("*") if file.is_file()]
    assert not any(b"zeppelin" in file.read_bytes() for file in files)
    with pytest.raises(errors.SessionNotFoundError):
        store().delete("alice")
    say(store(), "alice", "Born again.")
    with store().session("alice") as session:
        assert 1 == len(session.messages())


@pytest.mark.parametrize("read_only", [False, True])
def test_an_open_memory_is_not_deleted(store, read_only):
    say(store(), "alice", "I am here.")
    with store().session("alice", read_only=read_only) as session:
        with pytest.raises(errors.SessionLockedError):
            store().delete("alice")
        assert "I am here." in session[:]
    store().delete("alice")


def test_deleting_follows_no_link(store, disk, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    say(store(), "alice", "Hello.")
    (folder,) = (entry for entry in disk.folder.iterdir() if entry.name.startswith("acme"))
    (memory,) = folder.glob("alice-*.mc")
    (memory / "cache" / "link").symlink_to(outside)
    store().delete("alice")
    assert "mine" == (outside / "precious").read_text()


def test_a_link_in_place_of_a_memory_is_refused(store, disk, tmp_path):
    say(store(), "alice", "Hello.")
    (folder,) = disk.folder.iterdir()
    (memory,) = folder.glob("alice-*.mc")
    elsewhere = tmp_path / "elsewhere.mc"
    memory.rename(elsewhere)
    memory.symlink_to(elsewhere)
    for call in (store().session, store().delete):
        with pytest.raises(errors.ConfigError, match="symbolic link"):
            call("alice")
    assert () == store().list()
    assert (elsewhere / "MEMORY").exists()


def test_a_link_in_place_of_a_namespace_is_refused(store, disk, tmp_path):
    say(store("acme"), "alice", "Hello.")
    (folder,) = disk.folder.iterdir()
    folder.rename(tmp_path / "stolen")
    folder.symlink_to(tmp_path / "stolen")
    for call in (lambda: store().session("alice"), lambda: store().delete("alice"), store().list):
        with pytest.raises(errors.ConfigError, match="symbolic link"):
            call()


def test_names_whose_hashes_agree_are_not_confused(store, monkeypatch):
    # Eight hex digits can be made to agree by whoever may choose long names.
    monkeypatch.setattr(
        "megacontext_sdk.store._directory_name", lambda name: f"{name.lower()}-00000000"
    )
    say(store("acme"), "alice", "I am the first.")
    with pytest.raises(errors.ConfigError, match="another name"):
        store("acme").session("Alice")
    with pytest.raises(errors.ConfigError, match="another name"):
        store("acme").delete("Alice")
    for call in (lambda: store("ACME").session("x"), store("ACME").list):
        with pytest.raises(errors.ConfigError, match="another namespace"):
            call()


def test_a_deletion_that_was_cut_short_is_finished_by_the_next(store, disk):
    say(store(), "alice", "Hello.")
    say(store(), "bob", "Hello.")
    (folder,) = disk.folder.iterdir()
    (memory,) = folder.glob("alice-*.mc")
    memory.rename(folder / ".deleted-0123456789abcdef")
    assert ("bob",) == store().list()
    store().delete("bob")
    assert [] == [entry for entry in folder.iterdir() if entry.name != "NAMESPACE"]


def test_a_memory_with_a_damaged_file_is_still_listed(store, disk, caplog):
    for name in ("alice", "Bob"):
        say(store(), name, "Hello.")
    (folder,) = disk.folder.iterdir()
    for memory in folder.glob("*.mc"):
        (memory / "MEMORY").write_bytes(b"{}")
    with caplog.at_level(logging.WARNING):
        assert ("alice",) == store().list()
    assert 2 == caplog.text.count("cannot be read")


def test_folders_are_their_owners_alone(store, disk):
    mask = os.umask(0)
    try:
        say(store(("acme", "eu")), "alice", "Hello.")
    finally:
        os.umask(mask)
    for entry in disk.folder.rglob("*"):
        expected = 0o700 if entry.is_dir() else 0o600
        assert expected == entry.stat().st_mode & 0o777, entry


def test_row17_two_tenants_never_meet(store, tenants):
    tenants(store)
