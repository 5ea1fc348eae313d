from __future__ import annotations

import io

import pytest
from rich.console import Console

from megacontext_sdk._cli import show
from megacontext_sdk._cli.doctor import Check
from megacontext_sdk.catalogue import Catalogue, Failure, Provider
from megacontext_sdk.demo.facts import Fact
from megacontext_sdk.demo.run import Answer, Began, Progress, Summary
from megacontext_sdk.memory.lod import Span
from megacontext_sdk.records import FocusPolicySpec, StorageSpec
from megacontext_sdk.results import Citation, EntryReport, FocusReport, Hit, Reply, Stats, Usage


class Terminal(io.StringIO):
    """A text stream that claims an encoding."""

    def __init__(self, encoding="utf-8"):
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self):
        return self._encoding


@pytest.fixture
def console():
    return Console(file=Terminal(), width=100, force_terminal=False)


def printed(console):
    return console.file.getvalue()


def focus_report():
    entry = EntryReport(
        lod=0,
        span=Span(0, 20),
        cost=20,
        score=None,
        protected=True,
        pinned=False,
        revealed=True,
    )
    return FocusReport(
        entries=(entry,), n_tokens=20, cost=20, w_max=896, epoch=1, lod_counts={0: 1}
    )


def reply(text="Coco", citations=()):
    return Reply(
        text=text,
        message_id=4,
        usage=Usage(prompt_tokens=11, generated_tokens=2, window_rows=512),
        finish_reason="stop",
        focus=focus_report(),
        citations=citations,
        seconds=0.25,
    )


def fact():
    return Fact(
        "pet", "Anna", "Anna has a cat called Coco.", "What is Anna's cat called?", ("Coco",)
    )


def answer(**changes):
    known = {
        "fact": fact(),
        "told_at": Span(1000, 1012),
        "text": "Coco",
        "is_right": True,
        "source": Span(960, 1024),
        "saw_fact": True,
        "seconds": 0.125,
        "window_rows": 800,
    }
    return Answer(**(known | changes))


def summary(**changes):
    known = {
        "n_right": 17,
        "n_asked": 20,
        "n_tokens": 200_417,
        "max_rows": 881,
        "w_max": 896,
        "append_tokens_per_second": 123_456.0,
        "ms_per_question": 250.0,
        "ms_per_token": 9.25,
        "bytes_per_token": 31.5,
    }
    return Summary(**(known | changes))


def test_a_reply_shows_text_usage_and_the_spans_it_saw(console):
    cited = Citation(span=Span(9600, 9664), message_ids=(7,), score=0.5, reason="lexical")
    show.reply(console, reply(citations=(cited,)))
    lines = printed(console).splitlines()
    assert "Coco" == lines[0]
    assert "11 tokens in, 2 out (stop), 512 rows, 0.25 s" == lines[1]
    assert "  saw 9,600..9,664 (lexical, 0.50)" == lines[2]


def test_text_that_looks_like_markup_is_printed_as_it_is(console):
    show.reply(console, reply("[bold]x[/bold] [/nope]"))
    assert "[bold]x[/bold] [/nope]" == printed(console).splitlines()[0]


def test_hits_show_score_span_and_message(console):
    show.hits(console, [Hit(text="My [cat]\nTuring", span=Span(3, 9), score=7.5, message_id=2)])
    assert ["   7.50  3..9  message 2", "My [cat] Turing"] == printed(console).splitlines()


def test_long_hits_are_shortened(console):
    show.hits(console, [Hit(text="word " * 200, span=Span(0, 200), score=1.0, message_id=1)])
    assert printed(console).rstrip().endswith("…")
    assert len(printed(console)) < 320


def test_focus_uses_plain_letters_where_the_terminal_has_no_unicode():
    console = Console(file=Terminal("ascii"), width=100)
    show.focus(console, focus_report())
    assert printed(console).splitlines()[0].endswith("*")
    with_unicode = Console(file=Terminal(), width=100)
    show.focus(with_unicode, focus_report())
    assert "◆" in printed(with_unicode)


def test_stats_show_every_field(console):
    stats = Stats(
        path=None, storage="memory", model="echo", focus="heuristic", gist="mean",
        n_tokens=1234567, n_blocks=38580, n_messages=5, tail_tokens=7, seq=4,
        nodes={1: 38580, 2: 1205}, gist_versions={}, gists_reused=39785, gists_rebuilt=0,
        gists_missing=0, gists_pending=0, gists_provisional=0, gists_served={0: 39785},
        generation=1, snapshots=2, forgotten_tokens=0, rows=300, w_max=896,
        entries=20, epoch=3,
        lod_counts={0: 9}, window_rows=0, stale_rows=0, rebuilds=0, kv_cache_hit_ratio=0.5,
        bytes_on_disk=0, bytes_per_token=21.125,
    )  # fmt: skip
    show.stats(console, stats)
    text = printed(console)
    for name in stats.to_dict():
        assert name in text
    assert "1,234,567" in text
    assert "1: 38,580, 2: 1,205" in text
    assert "21.12" in text
    assert "none" in text


def test_plugins_show_owners_and_failures(console):
    spec = StorageSpec("acme", "acme.store:Store", "Blocks in [Acme] Cloud")
    policy = FocusPolicySpec("wise", "acme.focus:Wise", "Knows best")
    catalogue = Catalogue(
        providers=(
            Provider("storage", spec, "acme", "acme-memory", "1.2"),
            Provider("focus", policy, "builtin"),
        ),
        failures=(Failure("broken", "broken-dist", "0.1", ImportError("no module [x]")),),
    )
    show.plugins(console, catalogue)
    text = printed(console)
    assert "Blocks in [Acme] Cloud" in text
    assert "acme (acme-memory 1.2)" in text
    assert "failed: broken (ImportError: no module [x])" in text
    assert text.index("acme") < text.index("wise")  # in the order of the roles


def test_checks_show_what_is_fine_and_what_is_to_be_mended(console):
    show.checks(
        console,
        [Check("python", is_fine=True, detail="3.11"), Check("hf", is_fine=False, detail="pip it")],
    )
    first, second = printed(console).splitlines()
    assert ["ok", "python", "3.11"] == first.split()
    assert ["mend", "hf", "pip", "it"] == second.split()


def test_a_right_answer_names_its_place(console):
    show.demo(console, [answer()])
    text = " ".join(printed(console).split())
    assert "1. What is Anna's cat called? Coco right" in text
    assert "told at token 1,000; read 960..1,024 in full; 125 ms" in text


def test_a_wrong_answer_names_what_is_right(console):
    show.demo(console, [answer(text="Max", is_right=False)])
    assert "Max  wrong (it is Coco)" in printed(console)


def test_an_answer_that_never_saw_the_fact_says_so(console):
    show.demo(console, [answer(saw_fact=False), answer(saw_fact=False, source=None, text="")])
    text = printed(console)
    assert "not shown, read 960..1,024 in full" in text
    assert "not shown, nothing revealed" in text
    assert "(no answer)" in text


def test_answers_are_numbered(console):
    show.demo(console, [answer(), answer(), answer()])
    assert "  3. What is" in printed(console)


def test_the_demo_begins_with_where_and_what(console, tmp_path):
    show.demo(console, [Began(tmp_path / "demo.mc", "two [packaged] books"), Progress(10, 100)])
    text = printed(console)
    assert "History: two [packaged] books" in text
    assert f"Memory:  {tmp_path / 'demo.mc'}" in text


def test_the_summary_shows_the_figures_of_the_run(console):
    show.demo(console, [summary()])
    text = printed(console)
    for figure in ("17 of 20 (85%)", "200,417", "881 (budget 896)", "123,456 tokens/s", "9.2"):
        assert figure in text


def test_a_memory_that_was_there_already_has_no_speed_of_taking_in(console):
    show.demo(console, [summary(append_tokens_per_second=None)])
    assert "tokens/s" not in printed(console)


def test_accuracy_without_questions_is_zero():
    assert 0.0 == summary(n_right=0, n_asked=0).accuracy
    assert 0.85 == summary().accuracy


def test_the_byte_bar_takes_known_and_unknown_totals(console):
    for total in (100, None):
        with show.byte_bar(console, total) as advance:
            advance(60)
            advance(40)
