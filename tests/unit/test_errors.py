"""The error tree: as drawn, picklable, readable, and branching by what a caller can do."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from megacontext_sdk import errors

CLASSES = [getattr(errors, name) for name in errors.__all__]


def drawn_tree():
    """Return {class name: (parent in the drawing, second bases in brackets)}."""
    parents = []
    found = {}
    for line in errors.__doc__.splitlines():
        match = re.match(r"    ([ │├└─]*)([A-Z]\w+)(?:\(([\w, ]+)\))?", line)
        if not match:
            continue
        depth = len(match[1]) // 4 + bool(match[1])
        parents[depth:] = [match[2]]
        second = tuple((match[3] or "").split(", ")) if match[3] else ()
        found[match[2]] = (parents[depth - 1] if depth else None, second)
    return found


def test_the_drawing_at_the_top_shows_every_class_and_no_other():
    assert set(errors.__all__) == set(drawn_tree())


@pytest.mark.parametrize("kind", CLASSES, ids=errors.__all__)
def test_the_drawing_shows_the_true_bases(kind):
    parent, second = drawn_tree()[kind.__name__]
    expected = (*([parent] if parent else []), *second) or ("Exception",)
    assert expected == tuple(base.__name__ for base in kind.__bases__)


def test_the_list_of_names_is_sorted():
    assert sorted(errors.__all__) == errors.__all__


@pytest.mark.parametrize("kind", CLASSES, ids=errors.__all__)
@pytest.mark.parametrize("clone", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
def test_every_error_survives_pickling_with_its_facts(kind, clone):
    error = kind("w_max is 3; raise it", field="w_max", value=3, path="notes.mc")
    error.add_note("raised in a test")
    again = clone(error)
    assert kind is type(again)
    assert ("w_max is 3; raise it", "w_max", 3, "notes.mc") == (
        str(again),
        again.field,
        again.value,
        again.path,
    )
    assert error.__notes__ == again.__notes__


@pytest.mark.parametrize("kind", CLASSES, ids=errors.__all__)
def test_the_text_is_the_sentence_alone(kind):
    """Second bases such as OSError and LookupError would print it differently."""
    assert "the volume is full" == str(kind("the volume is full", needed=9, free=3))


@pytest.mark.parametrize("kind", CLASSES, ids=errors.__all__)
def test_every_error_says_what_it_means(kind):
    assert len(kind.__doc__ or "") > 10


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (errors.ConfigError, ValueError),
        (errors.QuotaError, ValueError),
        (errors.UnknownProviderError, LookupError),
        (errors.SessionNotFoundError, FileNotFoundError),
        (errors.StorageFullError, OSError),
    ],
)
def test_callers_who_know_only_the_standard_library_catch_them(kind, base):
    with pytest.raises(base):
        raise kind("the memory is not there")


def test_one_class_catches_all():
    assert all(issubclass(kind, errors.MegaContextError) for kind in CLASSES)
