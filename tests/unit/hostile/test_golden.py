"""Golden memories: every released format opens for ever, gives its content back, and goes on.

The folders of `tests/golden` were made once, by `make.py` beside them, and are never made again.
"""

import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import msgspec
import pytest

from megacontext_sdk import MemorySession, errors
from megacontext_sdk.plugins import default_plugins

GOLDEN = Path(__file__).parents[2] / "golden"
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/MEMORY"))


def _maker():
    spec = spec_from_file_location("golden_make", GOLDEN / "make.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = _maker()


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def golden(request, tmp_path):
    """Copy a golden memory and return a way to open the copy."""
    storage = msgspec.json.decode((request.param / "MEMORY").read_bytes())["backend"]
    if storage not in default_plugins().names("storage"):
        pytest.skip(f"the {storage} backend is not installed")
    copy = tmp_path / "golden.mc"
    shutil.copytree(request.param, copy)

    def open_copy(**settings):
        return MemorySession.open(copy, storage=storage, **(MAKER.OPTIONS | settings))

    open_copy.path = copy
    return open_copy


def check_content(session):
    *messages, ids = session.messages()[: len(MAKER.CONTENT) + 1]
    for said, found in zip(MAKER.CONTENT, messages, strict=True):
        assert (said["role"], said["content"]) == (found.role, found.text)
        assert said.get("source") == found.source
        assert said.get("name") == found.actor
        assert said.get("metadata", {}) == found.metadata
    assert MAKER.TIME == messages[-1].timestamp
    assert len(MAKER.IDS) == ids.span.n_tokens
    assert bytes(MAKER.IDS).decode() in session.read(ids.span)
    (hit, *_) = session.search("What is my cat called, Turing?", 1)
    assert "Turing" in hit.text
    assert [MAKER.PIN] == [tuple(pin) for pin in session._parts.state.wc.pins]


def test_there_is_a_golden_memory_of_each_storage_of_this_repository():
    names = {folder.name.rsplit("-", 1)[0].split("-")[0] for folder in FOLDERS}
    installed = set(default_plugins().names("storage")) & {"duckdb", "filesystem"}
    assert set() == installed - names


def test_a_golden_memory_opens_for_reading_and_no_byte_changes(golden, snapshot):
    before = snapshot(golden.path)
    with golden(read_only=True) as session:
        check_content(session)
    assert before == snapshot(golden.path)


def test_a_golden_memory_knows_its_keys_and_can_be_appended_to(golden):
    with golden() as session:
        check_content(session)
        before = session.stats().n_tokens
        assert session.append(list(MAKER.IDS), role="tool", idempotency_key=MAKER.KEY).duplicate
        assert before == session.stats().n_tokens
        session.append("Said to a memory from long ago. " * 20)
        session.generate("And now?", max_new_tokens=3)
    with golden() as session:
        check_content(session)
        assert "from long ago" in session.search("long ago", 1)[0].text


@pytest.fixture(params=sorted(GOLDEN.glob("refused/*")), ids=lambda folder: folder.name)
def refused_format(request, tmp_path):
    copy = tmp_path / "old.mc"
    shutil.copytree(request.param, copy)
    return copy


def test_a_format_from_before_the_first_release_is_named_and_left_as_it_is(
    refused_format, unchanged
):
    """No release ever wrote it: it is the one kind of memory that is refused for its age."""
    if "duckdb" not in default_plugins().names("storage"):
        pytest.skip("the duckdb backend is not installed")
    for read_only in (True, False):
        with unchanged(errors.FormatVersionError) as caught:
            MemorySession.open(
                refused_format, storage="duckdb", read_only=read_only, **MAKER.OPTIONS
            )
        assert "before the first release" in str(caught.value)


def test_a_golden_memory_is_sound(golden):
    with golden(read_only=True) as session:
        assert session.verify().is_sound


def test_a_golden_memory_is_whole(golden):
    """Its gists are those this build would make, so none is computed again at opening."""
    with golden() as session:
        tree = session._parts.tree
        assert {} == dict(tree.encode_calls)
        assert 0 == tree.stats().n_missing_gists


def test_the_originals_are_as_they_were_committed():
    """A test that opened an original would have left a note in LOCK, or a cache."""
    assert [] == [f for folder in FOLDERS for f in folder.glob("cache")]
    assert {0} == {(folder / "LOCK").stat().st_size for folder in FOLDERS}
