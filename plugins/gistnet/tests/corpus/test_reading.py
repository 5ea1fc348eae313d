"""What a row of each kind of file means as a document."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from megacontext_gistnet.corpus import Source, Turn, domain_of, is_held_out
from megacontext_gistnet.corpus.reading import read_drafts, spoken_turns
from megacontext_sdk.errors import ConfigError


def narrated(*sentences):
    turns = [{"id": at, "speaker": "narrator", "text": text} for at, text in sentences]
    return {"speakers": ["narrator"], "sessions": [{"session_id": "s", "turns": turns}]}


def spoken(*lines, speakers=("Ann", "Bob")):
    turns = [{"id": at, "speaker": who, "text": text} for at, (who, text) in enumerate(lines)]
    return {"speakers": list(speakers), "sessions": [{"turns": turns[:2]}, {"turns": turns[2:]}]}


def only(source):
    (draft,) = read_drafts(source)
    return draft


def test_a_plain_row_is_its_text(write):
    draft = only(Source(write("kids_stories.jsonl.xz", [{"id": "a", "text": " Once. \n"}])))
    assert ("a", "story", "Once.") == (draft.doc_id, draft.domain, draft.content)


def test_rows_without_text_and_empty_lines_give_no_document(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "a", "text": "  "}\n\n{"id": "b", "text": "Yes."}\n')
    assert ["b"] == [draft.doc_id for draft in read_drafts(Source(path))]


@pytest.mark.parametrize("name", ["notes.txt", "notes.md"])
def test_a_text_file_is_one_document_named_by_its_place(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text("All of it.\n")
    draft = only(Source(tmp_path))
    assert (f"{tmp_path.name}/in/{name}", "All of it.\n") == (draft.doc_id, draft.content)


def test_a_folder_is_read_in_the_order_of_names_without_readmes_and_other_files(tmp_path):
    for name in ("b.txt", "a.md", "README.md", "LICENSE.txt", "c.bin"):
        (tmp_path / name).write_bytes(b"text")
    assert ["a.md", "b.txt"] == [file.path.name for file in Source(tmp_path).files()]


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("books_simple.jsonl.xz", "story"),
        ("textbooks.jsonl.xz", "text"),
        ("docs.jsonl", "text"),
        ("code.jsonl", "code"),
        ("self_dialogue.jsonl.xz", "dialogue"),
        ("babi/conversations.jsonl.xz", "facts"),
        ("fairytaleqa/conversations.jsonl.xz", "story"),
        ("unheard/conversations.jsonl", "dialogue"),
        ("something.txt", "text"),
    ],
)
def test_the_name_of_a_file_decides_its_domain(name, domain):
    assert domain == domain_of(Path(name))


def test_a_domain_that_was_named_wins(write):
    path = write("code.jsonl", [{"id": "a", "text": "Once."}])
    assert "story" == only(Source(path, domain="story")).domain


def test_questions_come_after_the_sentences_they_may_use(pair):
    story = narrated((1, "Ann took milk."), (3, "Bob ran."), (5, "Ann slept."))
    questions = [
        {"question": "Who slept?", "answer": "Ann", "meta": {"asked_after": 6}},
        {"question": "Who ran?", "answer": "Bob", "meta": {"asked_after": 4}},
    ]
    expected = (
        Turn("user", "Ann took milk. Bob ran."),
        Turn("user", "Who ran?"),
        Turn("assistant", "Bob"),
        Turn("user", "Ann slept."),
        Turn("user", "Who slept?"),
        Turn("assistant", "Ann"),
    )
    draft = only(Source(pair(story, questions)))
    assert ("facts", expected) == (draft.domain, draft.content)


def test_a_tale_without_moments_of_asking_is_plain_text(pair):
    folder = pair(
        narrated((1, "Part one."), (2, "Part two.")),
        [{"question": "What?", "answer": "One", "meta": {}, "evidence": [1]}],
        name="fairytaleqa",
    )
    assert "Part one.\n\nPart two." == only(Source(folder)).content


def test_a_tale_as_chat_asks_behind_the_section_that_answers(pair):
    folder = pair(
        narrated((1, "Part one."), (2, "Part two.")),
        [
            {"question": "Two?", "answer": "2", "evidence": [2, 1]},
            {"question": "One?", "answer": 1, "meta": None, "evidence": [1]},
            {"question": "All?", "answer": "3", "evidence": []},
        ],
        name="fairytaleqa",
    )
    found = [turn.text for turn in only(Source(folder, style="chat")).content]
    assert ["Part one.", "One?", "1", "Part two.", "Two?", "2", "All?", "3"] == found


def test_conversations_of_several_speakers_are_plain_lines(pair):
    folder = pair(spoken(("Ann", "Hi."), ("Bob", "Yes?"), ("Ann", "Bye.")), name="meetings")
    draft = only(Source(folder))
    assert ("dialogue", "Ann: Hi.\nBob: Yes?\n\nAnn: Bye.") == (draft.domain, draft.content)


def test_conversations_of_two_speakers_may_be_a_chat(pair):
    lines = ("Ann", "Hi."), ("Bob", "Yes?"), ("Bob", "Hm?"), ("Ann", "Bye.")
    draft = only(Source(pair(spoken(*lines)), style="chat"))
    expected = Turn("user", "Hi."), Turn("assistant", "Yes?\nHm?"), Turn("user", "Bye.")
    assert expected == draft.content


def test_a_meeting_of_three_is_no_chat(pair):
    lines = ("Ann", "Hi."), ("Bob", "Yes?"), ("Eve", "No.")
    draft = only(Source(pair(spoken(*lines, speakers=("Ann", "Bob", "Eve"))), style="chat"))
    assert "Ann: Hi.\nBob: Yes?\n\nEve: No." == draft.content


def test_dialogues_in_rows_are_lines_or_a_chat_with_the_same_id(write):
    path = write("task_dialogue.jsonl", [{"id": "a", "text": "User: Tea?\nSystem: Yes.\nUser: 2"}])
    plain, chat = only(Source(path)), only(Source(path, style="chat"))
    assert "User: Tea?\nSystem: Yes.\nUser: 2" == plain.content
    assert (Turn("user", "Tea?"), Turn("assistant", "Yes."), Turn("user", "2")) == chat.content
    assert (plain.doc_id, plain.is_held_out) == (chat.doc_id, chat.is_held_out)


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("A: one\nB: two", ["user", "assistant"]),
        ("System: Hello\nUser: Hi", ["assistant", "user"]),
        ("A: one\nand more\nB: two", ["user", "assistant"]),
        ("A: only one speaker", []),
        ("A: one\nB: two\nC: three", []),
        ("Prose. It has no speakers at all.", []),
        ("", []),
    ],
)
def test_lines_of_two_speakers_are_a_chat(text, roles):
    assert roles == [turn.role for turn in spoken_turns(text)]


def test_two_percent_are_held_out_by_the_id_alone():
    held_out = [is_held_out(f"row {i}") for i in range(20_000)]
    assert 300 < sum(held_out) < 500
    assert held_out == [is_held_out(f"row {i}") for i in range(20_000)]


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_a_whole_source_can_be_put_on_one_side(write, split):
    path = write("x.jsonl", [{"id": str(i), "text": "Yes."} for i in range(200)])
    sides = {draft.is_held_out for draft in read_drafts(Source(path, split=split))}
    assert {split == "held-out"} == sides


def test_a_folder_for_evaluation_is_held_out_as_a_whole(write):
    root = write("data/train/x.jsonl", [{"id": "t", "text": "Yes."}]).parents[1]
    write("data/eval-dev/x.jsonl", [{"id": "e", "text": "Yes."}])
    assert {"t": False, "e": True} == {d.doc_id: d.is_held_out for d in read_drafts(Source(root))}
    inner = Source(root / "eval-dev")
    assert [True] == [draft.is_held_out for draft in read_drafts(inner)]
    named = Source(root / "eval-dev", split="train")
    assert [False] == [draft.is_held_out for draft in read_drafts(named)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "a"', "is no JSON"),
        ("[1, 2]", "is no JSON object"),
        ('{"id": "a"}', "has no field 'text'"),
        ('{"id": 7, "text": "x"}', "has another type in its field 'id'"),
        ('{"id": "secret canary", "text": null}', "has another type in its field 'text'"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line_and_never_quoted(tmp_path, line, said):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a", "text": "Yes."}\n' + line + "\n")
    with pytest.raises(ConfigError, match=said) as caught:
        list(read_drafts(Source(path)))
    assert f"line 2 of {path}" in str(caught.value)
    assert (2, "data") == (caught.value.line, caught.value.field)
    assert "canary" not in str(caught.value)


def test_bad_sessions_and_questions_are_named(pair, write):
    folder = pair({"speakers": ["a"], "sessions": [{"turns": [{"id": 1}]}]})
    with pytest.raises(ConfigError, match="line 1 .* give every session `turns`"):
        list(read_drafts(Source(folder)))
    write("babi/questions.jsonl.xz", [{"conv_id": "one", "question": "Who?"}])
    with pytest.raises(ConfigError, match="line 1 .* has no field 'answer'"):
        list(read_drafts(Source(folder)))


def test_a_file_that_is_cut_off_or_no_text_is_named(tmp_path):
    (tmp_path / "cut.jsonl.xz").write_bytes(lzma.compress(b'{"id": "a", "text": "x"}\n')[:-12])
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    for name, said in (("cut.jsonl.xz", "cannot be read"), ("latin.txt", "is not UTF-8")):
        with pytest.raises(ConfigError, match=said) as caught:
            list(read_drafts(Source(tmp_path / name)))
        assert name in str(caught.value)


def test_no_data_is_an_error_that_says_what_is_read(tmp_path):
    with pytest.raises(ConfigError, match="there is no data at"):
        list(read_drafts(Source(tmp_path / "missing")))
    with pytest.raises(ConfigError, match=r"it needs files of .*\.jsonl\.xz"):
        list(read_drafts(Source(tmp_path)))


@pytest.mark.parametrize("field", ["domain", "style", "split"])
def test_an_unknown_setting_of_a_source_is_refused(tmp_path, field):
    with pytest.raises(ConfigError, match=f"{field}='poem' .* is unknown; use one of"):
        Source(tmp_path, **{field: "poem"})


def test_chats_alone_leave_out_prose_and_what_is_a_chat_in_every_style(write, pair):
    rows = [{"id": "p", "text": "Prose."}, {"id": "c", "text": "A: One.\nB: Two."}]
    path = write("dialogue.jsonl", rows)
    assert ["c"] == [draft.doc_id for draft in read_drafts(Source(path, style="chat-only"))]
    story = pair(
        narrated((1, "Ann ran.")),
        [{"question": "Who?", "answer": "Ann", "meta": {"asked_after": 2}}],
    )
    assert [] == list(read_drafts(Source(story, style="chat-only")))
