"""The record, the gates, the tables and the picture say what was measured."""

from __future__ import annotations

import io
import json

import attrs
import pytest
from rich.console import Console

from megacontext_gistnet.evaluation.adjacent import boundary
from megacontext_gistnet.evaluation.console import Bars, show, show_gates
from megacontext_gistnet.evaluation.lab import Readings
from megacontext_gistnet.evaluation.plot import draw
from megacontext_gistnet.evaluation.report import Report
from megacontext_gistnet.evaluation.run import Settings, Skipped
from megacontext_gistnet.evaluation.shape import gist_shapes
from megacontext_gistnet.evaluation.substitution import lod1, lod2, reach
from megacontext_sdk.builtin.mean_gist import MeanGistEncoder
from megacontext_sdk.errors import ConfigError


@pytest.fixture
def report(make_bench, make_windows, union):
    bench = make_bench(MeanGistEncoder(1), union(), union(shift=1))
    made = Report(
        command="megacontext eval gists",
        info=bench.lab.adapter.info,
        settings=Settings(windows=2, tables=("lod1",)),
        sink="none",
        encoders={"mean": {}, "union": {"minutes": "7"}},
        sources=[{"name": "books.jsonl", "digest": "0" * 64}],
    )
    readings = Readings(bench.lab, make_windows(6, 512))
    made.add(lod1(readings))
    made.add(gist_shapes(readings))
    made.add(boundary(readings))
    made.add(lod2(Readings(bench.lab, make_windows(4, 1120), top=2)))
    for section in reach(Readings(bench.lab, make_windows(6, 1024))):
        made.add(section)
    made.add(Skipped("books", "no story is long enough"))
    return made


def text_of(draw_it):
    file = io.StringIO()
    draw_it(Console(file=file, width=120))
    return file.getvalue()


def test_the_record_is_whole_and_plain(report, tmp_path):
    path = tmp_path / "deep" / "eval.json"
    report.write(path)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["command"] == "megacontext eval gists"
    assert ["lod1", "lod2", "near", "far"] == [one["key"] for one in found["sections"]]
    assert found["settings"]["seeds"] == 3
    assert found["encoders"]["union"]["minutes"] == "7"
    assert found["data"][0]["name"] == "books.jsonl"
    assert found["skipped"] == [{"key": "books", "why": "no story is long enough"}]
    assert {"megacontext-gistnet", "torch", "python"} <= set(found["versions"])
    line = found["sections"][0]["lines"][0]
    assert line["condition"] == {"name": "full", "slots": 0, "rows": 416}
    assert line["recovery"]["all"]["value"] == 1
    assert len(found["sections"][0]["fingerprint"]) == 64
    assert not path.with_name("eval.json.new").exists()


def test_what_is_no_number_is_null(report, tmp_path):
    first = report.sections[0]
    line = first.lines[0]
    broken = attrs.evolve(
        line,
        recovery=attrs.evolve(
            line.recovery, all=attrs.evolve(line.recovery.all, value=float("nan"))
        ),
    )
    report.sections[0] = attrs.evolve(first, lines=(broken, *first.lines[1:]))
    report.write(tmp_path / "eval.json")
    found = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))
    assert found["sections"][0]["lines"][0]["recovery"]["all"]["value"] is None


def test_gates_tell_the_right_gist_from_the_wrong_one(report):
    found = {(one.encoder, one.what): one for one in report.gates()}
    assert {"union S=1", "shifted S=1"} == {one for one, _ in found}
    assert found["union S=1", "R near"].passed
    assert not found["shifted S=1", "R near"].passed
    assert found["union S=1", "share of windows with R > 0"].passed
    assert found["union S=1", "above mean, intervals apart"].passed
    assert found["union S=1", "R of LOD2 above the mean of its gists"].passed
    assert found["union S=1", "R over recall tokens"].wanted == "≥ 0.25"


def test_a_gate_is_open_where_dropping_costs_nothing(report):
    """R is then a ratio of two noises, whatever it happens to be."""
    far = report.section("far")
    quiet = [
        attrs.evolve(
            line,
            recovery=attrs.evolve(
                line.recovery, delta_nll=attrs.evolve(line.recovery.delta_nll, value=0.01)
            ),
        )
        for line in far.lines
    ]
    report.sections = [attrs.evolve(far, lines=tuple(quiet)), report.section("lod1")]
    (gate,) = (one for one in report.gates() if (one.encoder, one.what) == ("union S=1", "R far"))
    assert gate.passed is None
    assert "dropping costs 0.010 nats" in gate.wanted


def test_dropping_everything_passes_no_gate_that_counts(make_bench, make_windows, union):
    """Gists of nothing: a small delta NLL can be had so, a recovery cannot."""

    class Nothing(union):
        def encode_blocks(self, blocks, services):
            made = super().encode_blocks(blocks, services)
            made.rows[:] = 0
            return made

    nothing = Nothing()
    nothing.name = "nothing"
    bench = make_bench(MeanGistEncoder(1), nothing)
    section = lod1(Readings(bench.lab, make_windows(6, 512)))
    made = Report(
        command="",
        info=bench.lab.adapter.info,
        settings=Settings(),
        sink="none",
        encoders={},
        sources=[],
        sections=[section],
    )
    found = {one.what: one for one in made.gates()}
    assert not found["R over recall tokens"].passed
    assert not found["share of windows with R > 0"].passed
    assert not found["recall tokens: above zero row and drop"].passed


def test_tables_show_floors_and_comparator_beside_every_number(report):
    text = text_of(
        lambda console: [
            show(console, one)
            for one in (*report.sections, tuple(report.shapes), tuple(report.boundaries))
        ]
    )
    for name in ("full", "drop", "zero row", "mean", "union", "shifted"):
        assert name in text
    for word in (
        "R, all tokens",
        "R, recall tokens",
        "ΔNLL",
        "story",
        "code",
        "diversity",
        "edges",
    ):
        assert word in text
    assert "…" not in text  # nothing was cut off


def test_gates_and_left_out_tables_are_shown(report):
    text = text_of(lambda console: show_gates(console, report.gates()))
    assert "met" in text
    assert "missed" in text
    assert text_of(lambda console: show_gates(console, ())) == ""
    assert "left out, books" in text_of(lambda console: show(console, Skipped("books", "why")))


def test_bars_count_steps():
    file = io.StringIO()
    bars = Bars(Console(file=file, force_terminal=True, width=100))
    with bars.stage("read", 3) as advance:
        advance(2)
        advance(1)
    assert "read" in file.getvalue()
    silent = io.StringIO()
    with Bars(Console(file=silent, width=100)).stage("read", 3) as advance:
        advance(3)
    assert silent.getvalue() == ""


def test_the_picture_is_drawn_with_and_without_a_ceiling(report, tmp_path):
    draw(report, tmp_path / "a" / "eval.png")
    data = (tmp_path / "a" / "eval.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 20_000
    report.sections.clear()
    draw(report, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").is_file()


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match="there is no table 'lod9'"):
        Settings(tables=("lod9",))
    with pytest.raises(ConfigError, match="windows=0"):
        Settings(windows=0)
