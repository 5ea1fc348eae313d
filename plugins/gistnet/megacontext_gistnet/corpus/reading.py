"""Files to drafts: what the rows of each kind of file mean as a document.

It reads texts and lays them out as prose, plain lines or messages; it knows no tokens.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from megacontext_gistnet.corpus.draft import Draft, Turn
from megacontext_gistnet.corpus.rows import bad_row, read_rows, read_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from megacontext_gistnet.corpus.rows import Row
    from megacontext_gistnet.corpus.source import Source, TextFile

__all__ = ["read_drafts", "spoken_turns"]

_SPOKEN: Final = re.compile(r"([A-Za-z][\w .'-]{0,24}): (.*)")
_ASSISTANTS: Final = frozenset({"assistant", "system", "bot", "agent"})


def read_drafts(source: Source) -> Iterator[Draft]:
    """Yield the documents of a source in a fixed order.

    Plain rows are `{id, text}`; a folder with `conversations` holds `{conv_id, speakers, sessions:
    [{turns: [{id, speaker, text}]}]}`, with `questions` `{conv_id, question, answer, meta}` beside.

    Raises:
        ConfigError: there is no data, or a row is not what it should be; it names file and line.
    """
    for file in source.files():
        for draft in _drafts(file, source):
            if file.style != "chat-only" or not isinstance(draft.content, str):
                yield draft


def spoken_turns(text: str) -> tuple[Turn, ...]:
    """Read lines "speaker: text" of two speakers as a chat; empty if it is none.

    The first to speak is the user, unless a name such as "System" says who is not. Lines without a
    speaker belong to the message before.
    """
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        match = _SPOKEN.fullmatch(line)
        if match:
            found.append((match[1], match[2].strip()))
        elif found and line.strip():
            found[-1] = found[-1][0], f"{found[-1][1]}\n{line.strip()}"
        elif line.strip():
            return ()
    speakers = list(dict.fromkeys(speaker for speaker, _ in found))
    return _as_chat(found, speakers) if len(speakers) == 2 else ()


def _drafts(file: TextFile, source: Source) -> Iterator[Draft]:
    if file.is_pair:
        yield from _conversations(file)
    elif ".jsonl" in file.path.suffixes:
        yield from _rows(file)
    else:
        inside = file.path.relative_to(source.path.parent).as_posix()
        yield _draft(file, inside, read_text(file.path))


def _rows(file: TextFile) -> Iterator[Draft]:
    for _, row in read_rows(file.path, {"id": str, "text": str}):
        text = row["text"].strip()
        chat = spoken_turns(text) if file.style != "auto" else ()
        if chat or text:
            yield _draft(file, row["id"], chat or text)


def _draft(file: TextFile, doc_id: str, content: str | tuple[Turn, ...]) -> Draft:
    return Draft(doc_id, file.domain, content, file.holds_out(doc_id))


def _conversations(file: TextFile) -> Iterator[Draft]:
    asked = _questions(file.questions)
    for number, row in read_rows(file.path, {"conv_id": str, "speakers": list, "sessions": list}):
        try:
            sessions = [
                [(turn["id"], str(turn["speaker"]), turn["text"].strip()) for turn in one["turns"]]
                for one in row["sessions"]
            ]
        except (AttributeError, KeyError, TypeError) as error:
            fix = "give every session `turns` of {id, speaker, text}"
            raise bad_row(file.path, number, "has sessions without such turns", fix) from error
        content = _content(file, row["speakers"], sessions, asked.get(row["conv_id"], []))
        if content:
            yield _draft(file, row["conv_id"], content)


def _content(
    file: TextFile,
    speakers: Sequence[str],
    sessions: list[list[tuple[object, str, str]]],
    questions: list[Row],
) -> str | tuple[Turn, ...]:
    """Lay one conversation out."""
    turns = [turn for session in sessions for turn in session]
    is_narrated = len(speakers) == 1
    if is_narrated and any("asked_after" in q["meta"] for q in questions):
        return "" if file.style == "chat-only" else _narrated(turns, questions)
    if is_narrated and file.style != "auto" and questions:
        return _studied(turns, questions)
    if is_narrated:
        return "\n\n".join(text for _, _, text in turns)
    if file.style != "auto" and len(speakers) == 2:
        return _as_chat([(speaker, text) for _, speaker, text in turns], list(speakers))
    return "\n\n".join("\n".join(f"{who}: {text}" for _, who, text in one) for one in sessions)


def _narrated(turns: list[tuple[object, str, str]], questions: list[Row]) -> tuple[Turn, ...]:
    """Interleave a story with its questions; each comes after the sentences it may use."""
    waiting = sorted(questions, key=lambda q: int(q["meta"].get("asked_after", 1 << 30)))
    chat: list[Turn] = []
    told: list[str] = []

    def tell() -> None:
        if told:
            chat.append(Turn("user", " ".join(told)))
            told.clear()

    for turn_id, _, text in turns:
        while waiting and int(waiting[0]["meta"].get("asked_after", 1 << 30)) < int(str(turn_id)):
            tell()
            chat += _asked(waiting.pop(0))
        told.append(text)
    tell()
    for question in waiting:
        chat += _asked(question)
    return tuple(chat)


def _studied(turns: list[tuple[object, str, str]], questions: list[Row]) -> tuple[Turn, ...]:
    """Tell a story by sections, each followed by the questions that rest on it last."""
    order = {turn_id: at for at, (turn_id, _, _) in enumerate(turns)}
    after: dict[int, list[Row]] = {}
    for question in questions:
        places = [order[one] for one in question.get("evidence") or () if one in order]
        after.setdefault(max(places, default=len(turns) - 1), []).append(question)
    chat: list[Turn] = []
    for at, (_, _, text) in enumerate(turns):
        chat.append(Turn("user", text))
        for question in after.get(at, ()):
            chat += _asked(question)
    return tuple(chat)


def _asked(question: Row) -> tuple[Turn, Turn]:
    return Turn("user", question["question"]), Turn("assistant", str(question["answer"]))


def _as_chat(turns: Sequence[tuple[str, str]], speakers: list[str]) -> tuple[Turn, ...]:
    """Give two speakers the roles of a chat; what one says in a row is one message."""
    replying = next((one for one in speakers if one.lower() in _ASSISTANTS), speakers[1])
    chat: list[Turn] = []
    for speaker, text in turns:
        role = "assistant" if speaker == replying else "user"
        if chat and chat[-1].role == role:
            chat[-1] = Turn(role, f"{chat[-1].text}\n{text}")
        elif text:
            chat.append(Turn(role, text))
    return tuple(chat)


def _questions(path: Path | None) -> dict[str, list[Row]]:
    """Return the questions of each conversation, by its id."""
    found: dict[str, list[Row]] = {}
    if path is None:
        return found
    for number, row in read_rows(path, {"conv_id": str, "question": str}):
        if row.get("answer") is None:
            raise bad_row(path, number, "has no field 'answer'", "give every question an answer")
        row["meta"] = row.get("meta") or {}
        found.setdefault(row["conv_id"], []).append(row)
    return found
