"""Small files of every kind, and a tokenizer of bytes: a document's tokens are its letters."""

from __future__ import annotations

import json
import lzma

import pytest

from megacontext_gistnet.corpus import is_held_out
from megacontext_sdk.builtin.echo import EchoModel


@pytest.fixture(scope="session")
def echo():
    return EchoModel()


@pytest.fixture(scope="session")
def tokenizer(echo):
    return echo.tokenizer


@pytest.fixture(scope="session")
def info(echo):
    return echo.info


@pytest.fixture
def write(tmp_path):
    """Write rows as JSON lines, compressed where the name says so; return the path."""

    def write_rows(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = lzma.open if path.suffix == ".xz" else open
        with opened(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return path

    return write_rows


@pytest.fixture
def texts(write):
    """A folder with stories, code and dialogues of 400 rows each, some of them held out."""
    for name, line in (
        ("stories.jsonl.xz", "Once upon a time {} ran away. "),
        ("code.jsonl", "def f{}(): pass\n"),
        ("task_dialogue.jsonl", "A: Hello {}.\nB: Good day.\n"),
    ):
        rows = [{"id": f"{name}:{i}", "text": line.format(i) * (1 + i % 7)} for i in range(400)]
        assert 0 < sum(is_held_out(row["id"]) for row in rows) < 40
        folder = write(f"data/{name}", rows).parent
    return folder


@pytest.fixture
def pair(write):
    """Write conversations with questions beside them; return the folder."""

    def write_pair(conversation, questions=(), name="babi"):
        row = {"conv_id": "one", **conversation}
        folder = write(f"{name}/conversations.jsonl.xz", [row]).parent
        write(f"{name}/questions.jsonl.xz", [{"conv_id": "one", **q} for q in questions])
        return folder

    return write_pair
