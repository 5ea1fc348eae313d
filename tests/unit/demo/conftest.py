from __future__ import annotations

import json
import lzma

import pytest

PARAGRAPH = "The rain fell on the roof of the old house by the river all day long."


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A small data folder: three books of numbered paragraphs and forty dialogues."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "eval-dev").mkdir()
    books = [{"text": "\n\n".join(f"{book}{n}. {PARAGRAPH}" for n in range(600))} for book in "ABC"]
    talks = [{"text": f"User: Talk {n}?\nSystem: Yes."} for n in range(40)]
    for name, rows in (("books", books), ("dialogue", talks)):
        with lzma.open(folder / "eval-dev" / f"{name}.jsonl.xz", "wt", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    return folder
