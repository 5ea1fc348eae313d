"""Query terms of a text, and where long messages are cut."""

from __future__ import annotations

import itertools

import pytest

from megacontext_sdk.memory.english import IRREGULAR_FORMS, STOP_WORDS
from megacontext_sdk.memory.lod import BLOCK_SIZE
from megacontext_sdk.memory.terms import MAX_TERMS, piece_bounds, query_terms


def test_words_without_content_are_left_out_unless_there_are_no_others():
    assert (("name",), ("dog",)) == query_terms("What is the name of her dog?")
    assert (("who",), ("am",), ("i",)) == query_terms("Who am I?")


def test_a_long_query_keeps_its_beginning_and_its_end():
    terms = query_terms(" ".join(f"w{i}" for i in range(1000)))
    assert MAX_TERMS == len(terms)
    assert (("w0",), ("w999",)) == (terms[0], terms[-1])


def test_word_lists_are_folded_and_disjoint():
    forms = [form for group in IRREGULAR_FORMS for form in group]
    assert len(forms) == len(set(forms))
    assert set() == STOP_WORDS & set(forms)
    assert all(word == word.lower() for word in [*STOP_WORDS, *forms])


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (5, 133), (0, 128), (0, 129), (31, 700), (64, 5000), (7, 150)]
)
def test_pieces_tile_a_message_on_block_boundaries(start, end):
    pieces = piece_bounds(start, end)
    assert (start, end) == (pieces[0].start, pieces[-1].end)
    for a, b in itertools.pairwise(pieces):
        assert a.end == b.start
        assert 0 == a.end % BLOCK_SIZE
    assert all(p.n_tokens <= 192 for p in pieces)
    assert len(pieces) == 1 or all(p.n_tokens >= BLOCK_SIZE for p in pieces)
