"""Every benchmark runs once at tiny size, so that none rots; figures of time are not looked at."""

from __future__ import annotations

import json
import math

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("megacontext_duckdb")
pytest.importorskip("megacontext_hf")
pytest.importorskip("megacontext_reference")

from rich.console import Console

from tests.benchmarks import evidence
from tests.benchmarks.__main__ import main, run, table
from tests.benchmarks.figures import LIMITS, UNITS, Figure, Limit, measured
from tests.benchmarks.page import BEGIN, END, figures_block, replaced
from tests.benchmarks.plot import draw
from tests.benchmarks.scale import TINY
from tests.benchmarks.suite import SUITE, chosen
from tests.benchmarks.timing import bootstrap, in_turn
from tests.benchmarks.workshop import Workshop, code_version

BOUNDED = {"recall_200k", "recall_ceiling", "evidence_512", "evidence_1024", "evidence_2048"}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return Workshop(TINY, tmp_path_factory.mktemp("bench") / "memories")


@pytest.mark.parametrize("benchmark", SUITE, ids=lambda benchmark: benchmark.names[0])
def test_a_benchmark_gives_its_figures(benchmark, workshop):
    reason = benchmark.why_not()
    if reason:
        pytest.skip(reason)
    figures = benchmark.measure(workshop)
    assert figures
    assert {figure.name for figure in figures} <= set(benchmark.names)
    for figure in figures:
        assert math.isfinite(figure.value)
        assert figure.baseline
        if figure.name in BOUNDED:
            assert 0 <= figure.value <= 1
        elif figure.name not in {"rss_growth_mb", "audit_kl", "int8_nll_shift"}:
            assert figure.value != 0


def test_every_figure_belongs_to_one_benchmark():
    names = [name for benchmark in SUITE for name in benchmark.names]
    assert sorted(UNITS) == sorted(names)
    assert set(LIMITS) <= set(UNITS)


def test_a_run_writes_what_it_measured_and_why_it_did_not(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "DATA", tmp_path / "nothing")
    workshop = Workshop(TINY, tmp_path / "memories")
    figures = run(chosen(["evidence_512"]), workshop, Console(quiet=True))
    entry = figures[0].to_json("machine", "2026-01-01")
    assert {"value", "unit", "baseline", "machine", "date", "reason"} == set(entry)
    assert entry["value"] is None
    assert "locomo" in entry["reason"]
    assert "skipped" == figures[0].verdict


def test_a_name_that_is_none_is_refused(capsys):
    with pytest.raises(ValueError, match="no figure is called nonsense"):
        chosen(["nonsense"])
    with pytest.raises(SystemExit):
        main(["--only", "nonsense"])


def test_a_limit_is_a_floor_or_a_ceiling():
    assert "yes" == measured("decode_vs_generate", 0.9, "x").verdict
    assert "NO" == measured("decode_vs_generate", 0.89, "x").verdict
    assert "NO" == measured("rss_growth_mb", 64.1, "x").verdict
    assert "yes" == measured("rss_growth_mb", -3.0, "x").verdict
    assert not measured("audit_kl", 3.0, "x").verdict
    assert 2 == Limit(10, is_floor=False).margin(5)


def test_table_and_picture_take_any_figures(tmp_path):
    figures = [
        measured("decode_vs_generate", 1.2, "plain"),
        measured("rss_growth_mb", 80.0, "10k"),
        measured("bytes_per_token", 30.0, "parts"),
        Figure(name="evidence_512", value=None, baseline="none", reason="no data"),
    ]
    assert 4 == table(figures).row_count
    draw(figures, {"ms per token against history": {1e4: 2.0, 1e6: 2.1}}, tmp_path / "a.png", "m")
    draw([], {}, tmp_path / "b.png", "m")
    assert b"\x89PNG" == (tmp_path / "a.png").read_bytes()[:4]
    json.dumps([figure.to_json("m", "d") for figure in figures])


def test_a_figure_says_of_what_it_is_the_sum():
    figure = Figure(
        name="bytes_per_token", value=5.5, baseline="x", parts={"ids": 2.0, "text": 3.5}
    )
    assert {"ids": 2.0, "text": 3.5} == figure.to_json("m", "d")["parts"]
    assert "parts" not in measured("audit_kl", 1.0, "x").to_json("m", "d")


def test_two_sides_run_in_turn_and_change_their_order():
    calls = []
    results = in_turn(2, lambda: calls.append("a") or 1.0, lambda: calls.append("b") or 2.0)
    assert ["a", "b", "a", "b", "b", "a"] == calls  # the first pair is the warm-up
    assert [[1.0, 1.0], [2.0, 2.0]] == results


def test_an_interval_holds_the_mean():
    import numpy as np

    low, high = bootstrap(np.arange(100) % 2, lambda rows: float(rows.mean()))
    assert low < 0.5 < high
    assert 0.15 < high - low < 0.25


def test_the_page_shows_full_figures_between_its_marks():
    results = {
        "bytes_per_token": measured("bytes_per_token", 26.13, "parts").to_json("box", "2026-01-02"),
        "evidence_512": Figure(
            name="evidence_512", value=None, baseline="none", reason="no data"
        ).to_json("box", "2026-01-02"),
    }
    page = replaced(f"a {BEGIN} old {END} z", figures_block(results, ["a note", "  detail"]))
    assert page.startswith(f"a {BEGIN}\n")
    assert page.endswith(f"{END} z")
    assert "| `bytes_per_token` | 26.1 | B/token | parts; required: ≤ 17 |" in page
    assert "| `evidence_512` | not measured | share | no data |" in page
    assert "- a note" in page
    assert "old" not in page
    assert "detail" not in page


def test_the_page_refuses_figures_of_a_smaller_run_and_a_page_without_marks():
    entry = measured("bytes_per_token", 1.0, "x").to_json("box (scale quick)", "2026-01-02")
    with pytest.raises(ValueError, match="run the whole"):
        figures_block({"bytes_per_token": entry}, [])
    with pytest.raises(ValueError, match="lacks"):
        replaced("no marks", "x")


def test_a_run_says_which_code_it_measured(tmp_path):
    assert code_version().startswith("code: ")
    assert [code_version()] == Workshop(TINY, tmp_path / "memories").notes
