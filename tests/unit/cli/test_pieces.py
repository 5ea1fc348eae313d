from __future__ import annotations

import io
from pathlib import Path

import pytest

from megacontext_sdk._cli.pieces import PIECE_CHARACTERS, count_bytes, read_pieces
from megacontext_sdk.errors import ConfigError

STDIN = Path("-")


def test_a_short_file_is_one_piece(tmp_path):
    file = tmp_path / "note.txt"
    file.write_text("One.\nTwo.\n")
    assert [("note.txt", "One.\nTwo.\n", 10)] == list(read_pieces([file], io.StringIO()))


def test_stdin_is_read_by_its_dash():
    assert [("stdin", "Hello", 5)] == list(read_pieces([STDIN], io.StringIO("Hello")))


def test_nothing_is_lost_and_pieces_end_with_a_line(tmp_path):
    text = "".join(f"Line {n} of a long file.\n" for n in range(5000))
    file = tmp_path / "long.txt"
    file.write_text(text)
    pieces = [piece for _, piece, _ in read_pieces([file], io.StringIO())]
    assert text == "".join(pieces)
    assert 1 < len(pieces)
    assert all(piece.endswith("\n") for piece in pieces)
    assert all(len(piece) < PIECE_CHARACTERS + 40 for piece in pieces)


def test_a_file_without_line_ends_is_cut_too():
    text = "x" * (3 * PIECE_CHARACTERS + 5)
    pieces = [piece for _, piece, _ in read_pieces([STDIN], io.StringIO(text))]
    assert [PIECE_CHARACTERS] * 3 + [5] == [len(piece) for piece in pieces]


@pytest.mark.parametrize("text", ["", "\n\n", " \t \n"])
def test_pieces_without_a_word_are_left_out(text):
    assert [] == list(read_pieces([STDIN], io.StringIO(text)))


def test_bytes_are_counted_as_stored(tmp_path):
    file = tmp_path / "u.txt"
    file.write_text("ä", encoding="utf-8")
    assert 2 == count_bytes([file])
    assert [2] == [size for _, _, size in read_pieces([file], io.StringIO())]


def test_the_size_of_stdin_is_unknown(tmp_path):
    assert count_bytes([STDIN]) is None
    file = tmp_path / "a.txt"
    file.write_text("a")
    assert count_bytes([file, STDIN]) is None


def test_a_directory_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match="is a directory; name the text files in it"):
        count_bytes([tmp_path])


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        count_bytes([tmp_path / "none.txt"])


def test_a_binary_file_is_an_error_that_names_it(tmp_path):
    file = tmp_path / "b.bin"
    file.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match=r"b\.bin is not UTF-8 text \(byte 0xff\)"):
        list(read_pieces([file], io.StringIO()))
