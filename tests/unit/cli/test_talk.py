from __future__ import annotations

import io

import pytest
from rich.console import Console

from megacontext_sdk import MemorySession
from megacontext_sdk._cli.talk import talk
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.results import TextDelta


class Script:
    """A console that reads from a list; entries that are exceptions are raised."""

    def __init__(self, *lines):
        self._lines = list(lines)
        self._console = Console(file=io.StringIO(), width=100)

    def input(self, prompt=""):
        if not self._lines:
            raise EOFError
        line = self._lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    def __getattr__(self, name):
        return getattr(self._console, name)

    @property
    def printed(self):
        return self._console.file.getvalue()


@pytest.fixture
def session():
    with MemorySession.open(None, model="echo", storage="memory") as opened:
        yield opened


def chat(session, *lines, max_new_tokens=4):
    script = Script(*lines)
    talk(session, script, max_new_tokens=max_new_tokens, temperature=0.0)
    return script.printed


def said(session):
    return [(message.role, message.text) for message in session.messages() if message.text]


def test_what_is_said_is_remembered_with_its_answer(session):
    chat(session, "Hello there")
    assert ("user", "Hello there") in said(session)
    assert "assistant" == session.messages()[-1].role


def test_the_streamed_text_is_the_reply(session):
    printed = chat(session, "Hello there", max_new_tokens=24)
    reply = session.messages()[-1].text
    assert reply
    assert "".join(reply.split()) in "".join(printed.split())


def test_quit_leaves_at_once(session):
    chat(session, "/quit", "never said")
    assert [] == said(session)


def test_the_end_of_the_input_leaves(session):
    assert "/quit leaves" in " ".join(chat(session).split())


def test_ctrl_c_at_the_prompt_leaves(session):
    chat(session, KeyboardInterrupt(), "never said")
    assert [] == said(session)


def test_blank_lines_say_nothing(session):
    chat(session, "", "   ")
    assert [] == said(session)


def test_focus_and_stats_are_shown_and_not_remembered(session):
    printed = chat(session, "/focus", "/stats")
    assert "rows" in printed
    assert "n_tokens" in printed
    assert [] == said(session)


def test_an_unknown_command_is_named_and_not_remembered(session):
    assert "/nope is no command" in chat(session, "/nope")
    assert [] == said(session)


class Interrupted:
    """A session whose stream is interrupted after its first piece of text."""

    def __init__(self, error):
        self._error = error
        self.closed = 0

    def stream(self, prompt, **options):
        try:
            yield TextDelta(f"heard {prompt}")
            raise self._error
        finally:
            self.closed += 1


def test_ctrl_c_ends_the_reply_and_not_the_chat():
    session = Interrupted(KeyboardInterrupt())
    printed = chat(session, "one", "two")
    assert "heard one (stopped)" in printed
    assert "heard two (stopped)" in printed
    assert 2 == session.closed


def test_an_error_ends_the_reply_and_not_the_chat():
    session = Interrupted(ConfigError("too [long]", field="prompt", value="x"))
    printed = chat(session, "one", "two")
    assert "ConfigError: too [long]" in printed
    assert "heard two" in printed


def test_an_interrupted_reply_of_a_real_session_is_kept(session, monkeypatch):
    real = session.stream

    def stream(*args, **options):
        stopped = real(*args, **options)
        try:
            for n, item in enumerate(stopped):
                yield item
                if n == 3:
                    raise KeyboardInterrupt
        finally:
            stopped.close()

    monkeypatch.setattr(session, "stream", stream)
    printed = chat(session, "Hello there", max_new_tokens=64)
    assert "(stopped)" in printed
    assert "assistant" == session.messages()[-1].role
    assert session.messages()[-1].text in printed
    monkeypatch.undo()
    chat(session, "And again")
    assert ("user", "And again") in said(session)
