from __future__ import annotations

import pytest

from megacontext_sdk.demo.facts import is_correct
from megacontext_sdk.demo.history import depths
from megacontext_sdk.demo.run import Answer, Began, DemoSettings, Progress, Summary, run_demo
from megacontext_sdk.errors import ConfigError


def settings(data_dir, **changes):
    small = {"model": "echo", "storage": "memory", "n_tokens": 20_000, "n_facts": 6}
    return DemoSettings(
        **(small | {"n_questions": 3, "w_max": 512, "data_dir": data_dir} | changes)
    )


def of(kind, happenings):
    return [item for item in happenings if isinstance(item, kind)]


@pytest.fixture(scope="module")
def happenings(data_dir):
    return list(run_demo(settings(data_dir)))


def test_it_begins_and_ends_with_what_was_run(happenings):
    assert isinstance(happenings[0], Began)
    assert isinstance(happenings[-1], Summary)
    assert 1 == len(of(Began, happenings)) == len(of(Summary, happenings))


def test_progress_rises_to_the_length_asked_for(happenings):
    seen = [item.n_tokens for item in of(Progress, happenings)]
    assert sorted(seen) == seen
    assert 1 < len(seen)
    assert 20_000 <= seen[-1]


def test_as_many_questions_are_asked_as_wanted(happenings):
    assert 3 == len(of(Answer, happenings)) == happenings[-1].n_asked


def test_the_fact_at_the_very_start_is_always_asked_for(happenings):
    assert 0.0 == depths(6)[0]
    first = of(Answer, happenings)[0]
    assert first.told_at.start < 10


def test_right_and_wrong_are_counted_from_the_answers(happenings):
    answers = of(Answer, happenings)
    assert [is_correct(a.text, a.fact) for a in answers] == [a.is_right for a in answers]
    assert sum(a.is_right for a in answers) == happenings[-1].n_right


def test_the_answer_says_which_span_it_saw(happenings):
    for answer in of(Answer, happenings):
        assert answer.window_rows <= 512
        holds = answer.source is not None and (
            answer.source.start < answer.told_at.end and answer.told_at.start < answer.source.end
        )
        assert holds or not answer.saw_fact


def test_facts_the_words_of_the_question_lead_to_are_seen(happenings):
    assert any(answer.saw_fact for answer in of(Answer, happenings))


def test_the_summary_counts_the_questions_into_the_history(happenings):
    summary = happenings[-1]
    assert of(Progress, happenings)[-1].n_tokens < summary.n_tokens
    assert 0 < summary.max_rows <= summary.w_max == 512
    assert summary.ms_per_token > 0
    assert summary.ms_per_question > 0
    assert summary.append_tokens_per_second > 0


def test_a_kept_memory_is_asked_again_without_taking_anything_in(data_dir, tmp_path):
    kept = settings(data_dir, storage="duckdb", path=tmp_path / "kept.mc")
    pytest.importorskip("megacontext_duckdb", reason="the duckdb backend is not installed")
    first = list(run_demo(kept))
    again = list(run_demo(kept))
    assert [] == of(Progress, again)
    assert again[-1].append_tokens_per_second is None
    assert [a.told_at for a in of(Answer, first)] == [a.told_at for a in of(Answer, again)]


def test_a_memory_with_other_facts_is_refused(data_dir, tmp_path):
    pytest.importorskip("megacontext_duckdb", reason="the duckdb backend is not installed")
    kept = settings(data_dir, storage="duckdb", path=tmp_path / "kept.mc")
    list(run_demo(kept))
    other = settings(data_dir, storage="duckdb", path=tmp_path / "kept.mc", seed=9)
    with pytest.raises(ConfigError, match="choose a new path") as caught:
        list(run_demo(other))
    assert "path" == caught.value.field


def test_stopping_early_leaves_no_folder_behind(data_dir):
    running = run_demo(settings(data_dir, storage="duckdb"))
    pytest.importorskip("megacontext_duckdb", reason="the duckdb backend is not installed")
    began = next(running)
    next(running)
    running.close()
    assert not began.path.parent.exists()


def test_further_settings_reach_the_session(data_dir):
    with pytest.raises(ConfigError, match="no_such_setting"):
        list(run_demo(settings(data_dir, options={"no_such_setting": 1})))
    pinned = list(run_demo(settings(data_dir, options={"sink_blocks": 0, "recent_tokens": 64})))
    assert isinstance(pinned[-1], Summary)
