"""Reply text: what is final, what may be taken into the memory, and where stop strings cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_sdk.builtin.byte_tokenizer import ByteTokenizer
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.runtime.reply import MAX_STOP_CHARACTERS, ReplyText, check_stop

TOKENIZER = ByteTokenizer()


def push_all(reply: ReplyText, text: str) -> str:
    shown = ""
    for token_id in TOKENIZER.encode(text).tolist():
        shown += reply.push(token_id)
        if reply.stopped:
            break
    return shown


def test_text_without_stop_strings_is_final_at_once() -> None:
    reply = ReplyText(TOKENIZER)

    shown = push_all(reply, "hello")

    assert "hello" == shown == reply.text
    assert 5 == reply.n_settled


def test_a_possible_start_of_a_stop_string_is_held_back() -> None:
    reply = ReplyText(TOKENIZER, ("END",))

    shown = push_all(reply, "the E")

    assert "the " == shown
    assert 4 == reply.n_settled
    assert " fox" == push_all(reply, "X fox")[-4:]
    assert "the EX fox" == reply.text


def test_a_stop_string_ends_the_reply_and_is_left_out() -> None:
    reply = ReplyText(TOKENIZER, ("END", "STOP"))

    shown = push_all(reply, "one STOP two END")

    assert reply.stopped
    assert "one " == shown == reply.text
    ids, text = reply.take(100)
    assert "one " == text == TOKENIZER.decode(ids)


def test_the_earliest_stop_string_wins() -> None:
    reply = ReplyText(TOKENIZER, ("cd", "bcd"))

    push_all(reply, "abcd")

    assert "a" == reply.text


def test_a_token_cut_in_two_is_replaced_by_tokens_of_what_is_left() -> None:
    class Wide(ByteTokenizer):
        """Id 300 is the text 'world' in one token."""

        def detokenizer(self):
            inner = super().detokenizer()

            class _Wide(type(inner)):
                def push(self, token_id):
                    return "world" if token_id == 300 else inner.push(token_id)

            return _Wide()

    reply = ReplyText(Wide(), ("ld",))
    reply.push(ord("a"))
    reply.push(300)

    assert reply.stopped
    assert "awor" == reply.text
    ids, text = reply.take(100)
    assert [ord(c) for c in "awor"] == ids.tolist()
    assert "awor" == text


def test_taking_in_parts_gives_every_settled_token_once() -> None:
    reply = ReplyText(TOKENIZER, ("ZZ",))
    push_all(reply, "abcdefZ")

    first, first_text = reply.take(4)
    second, second_text = reply.take(100)
    reply.finish()
    third, third_text = reply.take(100)

    assert "abcd" == first_text
    assert "ef" == second_text
    assert "Z" == third_text
    assert list(b"abcdefZ") == np.concatenate([first, second, third]).tolist()
    assert 7 == reply.n_taken


def test_half_a_character_is_shown_when_it_is_whole() -> None:
    reply = ReplyText(TOKENIZER)
    first, second = TOKENIZER.encode("é").tolist()

    assert reply.push(first) == ""
    assert "é" == reply.push(second)


def test_finish_gives_up_waiting_for_a_stop_string() -> None:
    reply = ReplyText(TOKENIZER, ("END",))
    push_all(reply, "the EN")

    assert "EN" == reply.finish()
    assert not reply.stopped
    assert "the EN" == reply.text


@pytest.mark.parametrize("stop", ["", ["ok", ""], "x" * (MAX_STOP_CHARACTERS + 1), [7]])
def test_unusable_stop_strings_are_refused_by_name(stop) -> None:
    with pytest.raises(ConfigError, match="1 to 32 characters") as caught:
        check_stop(stop)
    assert "stop" == caught.value.field


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(alphabet="abc", max_size=40),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    limits=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_the_reply_is_the_text_before_the_first_stop_string(text, stops, limits) -> None:
    reply = ReplyText(TOKENIZER, tuple(stops))
    taken, shown = [], ""
    for number, token_id in enumerate(TOKENIZER.encode(text).tolist()):
        shown += reply.push(token_id)
        if reply.stopped:
            break
        taken += reply.take(limits[number % len(limits)])[0].tolist()
    shown += reply.finish()
    taken += reply.take(1000)[0].tolist()

    # The first moment at which any stop string is complete decides.
    ends = [(text.find(s) + len(s), text.find(s)) for s in stops if s in text]
    complete = min((end for end, _ in ends), default=None)
    expected = text
    if complete is not None:
        expected = text[: min(start for end, start in ends if end == complete)]
    assert expected == shown == reply.text
    assert expected == TOKENIZER.decode(np.array(taken, dtype=np.int32))
