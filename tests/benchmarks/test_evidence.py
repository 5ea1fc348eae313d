"""A thin slice of the evidence benchmark, so that a loss of recall is seen before `make bench`."""

from __future__ import annotations

import pytest

from tests.benchmarks import evidence
from tests.benchmarks.evidence import EvidenceSettings, evidence_table

pytestmark = pytest.mark.skipif(
    not (evidence.DATA.is_dir() and evidence.MODEL.is_dir()),
    reason=f"needs the shared data in {evidence.SHARED}",
)


def test_row42_the_heuristic_finds_more_than_its_floors_and_no_more_than_free_retrieval():
    table = evidence_table((1024,), settings=EvidenceSettings(stride=10))
    shares = {name: figures[1024] for name, figures in table.items()}
    assert shares["heuristic"] > shares["bm25 on blocks"]
    assert shares["heuristic"] > 0.6
    assert shares["heuristic"] > 2 * shares["recency"]
    assert shares["retrieval"] > shares["heuristic"] > shares["cosine"]
