"""The page of gists shows what was measured, and nothing else."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks import gist_page
from tests.benchmarks.page import BEGIN, END


def recovery(value, low, high):
    apart = {"value": value, "low": low, "high": high}
    return {
        "nll": apart,
        "delta_nll": apart,
        "all": apart,
        "recall": {"value": None, "low": None, "high": None},
        "share_positive": 0.97,
        "share_not_worse": 0.99,
        "n_windows": 12,
        "n_documents": 7,
        "n_tokens": 1140,
        "n_recall_tokens": 90,
    }


@pytest.fixture
def record():
    lines = [
        {
            "condition": {"name": name, "slots": slots, "rows": 13.0},
            "domain": domain,
            "recovery": recovery(value, value - 0.1, value + 0.1),
        }
        for name, slots, value in (("drop", 0, 0.0), ("mean", 1, -0.5), ("mine", 1, 0.625))
        for domain in ("all", "story", "code")
    ]
    apart = {"value": 1.125, "low": 1.0, "high": 1.25}
    return {
        "command": "megacontext eval gists --held-out-folder /x/shared/data/eval-dev --seeds 3",
        "model": {"name": "lab"},
        "versions": {"torch": "2.0"},
        "packaged_data_only": False,
        "encoders": {
            "mean": {},
            "mine": {
                "steps": "1234",
                "minutes": "7.4",
                "device": "1 x cpu",
                "weights_sha256": "ab" * 32,
            },
        },
        "sections": [
            {
                "key": "lod1",
                "title": "Everything old as LOD1 gists",
                "about": ["all but the last 96"],
                "lines": lines,
                "differences": [{"what": "mine - mean, S=1", "all": apart, "recall": apart}],
            }
        ],
        "shapes": [
            {
                "encoder": "mine",
                "slots": 1,
                "diversity": 0.11,
                "own_diversity": 0.9,
                "norm_ratio": 3.0,
                "norm_low": 2.0,
                "norm_high": 4.0,
                "twin_distance": 0.2,
            }
        ],
        "boundaries": [{"encoder": "mine", "slots": 1, "ratio": apart}],
        "gates": [
            {
                "encoder": "mine S=1",
                "what": "R near",
                "value": 0.4,
                "wanted": "≥ 0.50",
                "passed": False,
            }
        ],
    }


def test_every_figure_stands_as_it_was_measured(record):
    text = gist_page.figures_block(record)
    for part in (
        "megacontext eval gists --held-out-folder ../shared/data/eval-dev --seeds 3",
        "- `mine`: 1,234 steps, 7 minutes on 1 x cpu, weights `abababababab`",
        "All but the last 96. 12 windows of 7 documents, 1,140 tokens counted, 90 of them recall",
        "| mine | 1 | 13 | 0.62 | +0.625 | 0.62 [0.53, 0.72] | - | 97 % | 99 % |",
        "| mine | 1 | 0.62 / - | 0.62 / - |",
        "- mine - mean, S=1: 1.12 [1.00, 1.25] all",
        "| mine | 1 | 0.11 | 0.90 | 3.00 (2.00, 4.00) | 0.20 | 1.12 [1.00, 1.25] |",
        "| mine S=1 | R near | 0.40 | ≥ 0.50 | missed |",
    ):
        assert part in text
    assert "/x/" not in text


def test_figures_of_the_packaged_texts_are_refused(record):
    with pytest.raises(ValueError, match="cover all domains"):
        gist_page.figures_block(record | {"packaged_data_only": True})


def test_page_and_picture_are_replaced(record, tmp_path, monkeypatch):
    page, image = tmp_path / "page.md", tmp_path / "image.png"
    page.write_text(f"before {BEGIN} stale {END} after")
    monkeypatch.setattr(gist_page, "_PAGE", page)
    monkeypatch.setattr(gist_page, "_IMAGE", image)
    (tmp_path / "eval.json").write_text(json.dumps(record))
    (tmp_path / "eval.png").write_bytes(b"picture")
    assert 0 == gist_page.main(tmp_path / "eval.json")
    text = page.read_text()
    assert "stale" not in text
    assert "| R near | 0.40 |" in text
    assert image.read_bytes() == b"picture"
