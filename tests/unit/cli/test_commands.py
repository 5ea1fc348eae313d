"""The commands end to end, with the echo model on the default storage."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from megacontext_sdk import CommandSpec, MemorySession, hookimpl
from megacontext_sdk._cli.app import build_app
from megacontext_sdk.plugins import Plugins

pytest.importorskip("megacontext_duckdb", reason="the duckdb backend is not installed")

ECHO = ("--model", "echo")
COMMANDS = (
    *("demo", "chat", "append", "generate", "search"),
    *("focus", "stats", "plugins", "doctor"),
)


@pytest.fixture
def memory(tmp_path):
    """A memory with two messages in it."""
    path = tmp_path / "notes.mc"
    with MemorySession.open(path, model="echo") as session:
        session.append("My cat is called Turing.")
        session.append("The dentist moved to the harbour. " * 40)
    return path


def test_append_takes_in_files_and_says_how_much(call, tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("Anna has a parrot.\n")
    result = call("append", tmp_path / "a.mc", note, *ECHO)
    assert 0 == result.exit_code, result.output
    assert "tokens taken in" in result.stdout
    with MemorySession.open(tmp_path / "a.mc", model="echo") as session:
        (message,) = (m for m in session.messages() if "parrot" in m.text)
        assert "Anna has a parrot.\n" == message.text
        assert "note.txt" == message.source


def test_append_reads_stdin_when_no_file_is_named(call, tmp_path):
    result = call(
        "append", tmp_path / "a.mc", "--source", "mail", *ECHO, said="Hello from a pipe.\n"
    )
    assert 0 == result.exit_code, result.output
    with MemorySession.open(tmp_path / "a.mc", model="echo") as session:
        assert "Hello from a pipe.\n" == session.messages()[-1].text
        assert "mail" == session.messages()[-1].source


def test_append_takes_a_role(call, tmp_path):
    call("append", tmp_path / "a.mc", "--role", "tool", *ECHO, said="42 degrees")
    with MemorySession.open(tmp_path / "a.mc", model="echo") as session:
        assert "tool" == session.messages()[-1].role


def test_an_unknown_role_is_one_line_on_stderr_and_status_1(call, tmp_path):
    result = call("append", tmp_path / "a.mc", "--role", "wizard", *ECHO, said="Hello")
    assert 1 == result.exit_code
    assert "wizard" in result.stderr
    assert "Traceback" not in result.output
    assert 1 == len(result.stderr.strip().splitlines())


def test_a_missing_file_is_an_error_that_names_it(call, tmp_path):
    result = call("append", tmp_path / "a.mc", tmp_path / "none.txt", *ECHO)
    assert 1 == result.exit_code
    assert "none.txt" in result.stderr


def test_search_shows_the_hit_and_where_it_stands(call, memory):
    result = call("search", memory, "Turing", *ECHO)
    assert 0 == result.exit_code, result.output
    assert "My cat is called Turing." in result.stdout
    assert "message" in result.stdout


def test_search_without_hits_says_so(call, memory):
    assert "nothing found" in call("search", memory, "zeppelin", *ECHO).stdout


def test_search_as_json_is_what_the_api_returns(call, memory):
    hits = json.loads(call("search", memory, "Turing", "--json", *ECHO).stdout)
    with MemorySession.open(memory, model="echo", read_only=True) as session:
        assert [hit.to_dict() for hit in session.search("Turing")] == hits


def test_stats_are_those_of_the_api(call, memory):
    document = json.loads(call("stats", memory, "--json", *ECHO).stdout)
    with MemorySession.open(memory, model="echo", read_only=True) as session:
        assert session.stats().n_tokens == document["n_tokens"]
    shown = call("stats", memory, *ECHO).stdout
    assert "n_tokens" in shown
    assert f"{document['n_tokens']:,}" in shown


def test_focus_draws_the_map(call, memory):
    result = call("focus", memory, *ECHO)
    assert 0 == result.exit_code, result.output
    assert "in full ×" in result.stdout
    assert "rows" in result.stdout


def test_focus_scores_for_a_query_and_writes_a_png(call, memory, tmp_path):
    picture = tmp_path / "focus.png"
    result = call("focus", memory, "Where is the dentist?", "--png", picture, "--json", *ECHO)
    assert 0 == result.exit_code, result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads(result.stdout)["entries"]


def test_generate_prints_the_reply_and_remembers_it(call, memory):
    result = call("generate", memory, "Hello?", "--max-new-tokens", 4, *ECHO)
    assert 0 == result.exit_code, result.output
    assert "rows" in result.stdout
    with MemorySession.open(memory, model="echo", read_only=True) as session:
        assert ["user", "assistant"] == [m.role for m in session.messages()[-2:]]


def test_generate_without_memory_leaves_no_trace(call, memory):
    with MemorySession.open(memory, model="echo", read_only=True) as session:
        before = session.stats().n_tokens
    result = call("generate", memory, "Hello?", "--max-new-tokens", 4, "--no-remember", *ECHO)
    assert 0 == result.exit_code, result.output
    with MemorySession.open(memory, model="echo", read_only=True) as session:
        assert before == session.stats().n_tokens


def test_generate_as_json_has_citations_and_usage(call, memory):
    result = call("generate", memory, "Turing?", "--max-new-tokens", 4, "--json", *ECHO)
    document = json.loads(result.stdout)
    assert {"text", "usage", "citations", "focus"} <= set(document)


def test_chat_answers_shows_the_focus_and_quits(call, memory):
    result = call(
        "chat",
        memory,
        "--max-new-tokens",
        3,
        *ECHO,
        said="Hello\n/focus\n/stats\n/nope\n\n/quit\nnever\n",
    )
    assert 0 == result.exit_code, result.output
    assert "in full ×" in result.stdout
    assert "n_messages" in result.stdout
    assert "/nope is no command" in result.stdout
    with MemorySession.open(memory, model="echo", read_only=True) as session:
        assert "Hello" == session.messages()[-2].text


def test_chat_ends_with_its_input(call, memory):
    assert 0 == call("chat", memory, *ECHO, said="").exit_code


def test_reading_commands_refuse_a_memory_that_is_not_there(call, tmp_path):
    for command in (("stats",), ("focus",), ("search",)):
        words = ("x",) if command == ("search",) else ()
        result = call(*command, tmp_path / "none.mc", *words, *ECHO)
        assert 1 == result.exit_code
        assert "none.mc" in result.stderr
    assert not (tmp_path / "none.mc").exists()


def test_an_unknown_model_lists_what_exists(call, tmp_path):
    result = call("stats", tmp_path / "a.mc", "--model", "gpt-9")
    assert 1 == result.exit_code
    assert "gpt-9" in result.stderr
    assert "echo" in result.stderr


def test_plugins_lists_every_builtin_provider(call, builtins):
    result = call("plugins")
    assert 0 == result.exit_code, result.output
    for name in builtins.catalogue.names("focus"):
        assert name in result.stdout


def test_doctor_finds_the_memories_working(call):
    result = call("doctor")
    assert "memory on memory" in result.stdout
    assert "appended and found again" in result.stdout
    assert "sqlite fts5" in result.stdout


def test_demo_runs_with_the_echo_model_and_prints_measured_figures(call, tmp_path):
    result = call(
        "demo", "--tokens", 5000, "--facts", 3, "--questions", 2, "--w-max", 512, *ECHO,
        "--path", tmp_path / "demo.mc",
    )  # fmt: skip
    assert 0 == result.exit_code, result.output
    assert " of 2 (" in result.stdout
    assert "told at token" in result.stdout
    assert "megacontext chat" in result.stdout
    for figure in ("tokens in history", "rows in the window", "ms per token"):
        assert figure in result.stdout
    with MemorySession.open(tmp_path / "demo.mc", model="echo", read_only=True) as session:
        assert f"{session.stats().n_tokens:,}" in result.stdout


def test_every_command_of_the_architecture_has_help(call):
    listed = call("--help").stdout
    for name in COMMANDS:
        assert name in listed
        assert 0 == call(name, "--help").exit_code


class Greeter:
    @hookimpl
    def megacontext_commands(self):
        yield CommandSpec("greet", lambda: sys.stdout.write("hello from a plugin"), "Greet")
        yield CommandSpec("stats", lambda: sys.stdout.write("not me"), "Would hide ours")
        yield CommandSpec("broken", "no_such_module_anywhere:run", "Cannot be loaded")


def test_plugins_add_commands_but_never_replace_ours(memory):
    from typer.testing import CliRunner

    app = build_app(Plugins.load(plugins=(), modules=(Greeter(),)))
    assert "hello from a plugin" in CliRunner().invoke(app, ["greet"]).stdout
    assert "not me" not in CliRunner().invoke(app, ["stats", str(memory), *ECHO]).stdout
    assert 2 == CliRunner().invoke(app, ["broken"]).exit_code


MISSING = """
import sys
sys.modules["rich"] = None
sys.argv = ["megacontext", "stats"]
from megacontext_sdk._cli import main
main()
"""


def test_a_missing_library_is_one_line_with_the_command_that_installs_it():
    result = subprocess.run(
        [sys.executable, "-c", MISSING], capture_output=True, text=True, check=False
    )
    assert 1 == result.returncode
    assert "pip install 'megacontext-sdk[cli]'" in result.stderr
    assert 1 == len(result.stderr.strip().splitlines())


def test_the_core_is_importable_without_the_command_line():
    code = "import megacontext_sdk, sys; assert not {'typer', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_picture_that_cannot_be_written_is_refused_before_anything_happens(
    call, memory, tmp_path
):
    place = tmp_path / "none" / "x.png"
    for command in (("generate", memory, "Hello"), ("focus", memory)):
        result = call(*command, "--png", place, *ECHO)
        assert 1 == result.exit_code
        assert f"--png {place} cannot be written" in result.stderr
    with MemorySession.open(memory, model="echo") as session:
        assert 2 == session.stats().n_messages


def test_generate_draws_what_the_model_saw(call, memory, tmp_path):
    picture = tmp_path / "focus.png"
    result = call("generate", memory, "Where?", "--max-new-tokens", "4", "--png", picture, *ECHO)
    assert 0 == result.exit_code, result.output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_memory_that_is_not_there_is_named_with_the_way_to_make_one(call, tmp_path):
    result = call("stats", tmp_path / "none.mc", *ECHO)
    assert 1 == result.exit_code
    assert f"no memory at {tmp_path / 'none.mc'}" in result.stderr
    assert "make one with append or chat" in result.stderr


def test_a_memory_that_is_kept_nowhere_says_so(call, tmp_path):
    result = call("append", tmp_path / "a.mc", "--storage", "memory", *ECHO, said="Hello.")
    assert "keeps nothing when this ends" in result.stdout
