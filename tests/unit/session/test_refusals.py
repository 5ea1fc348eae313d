"""Bad calls of a session: the error names the thing, the value and the fix, and nothing changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from megacontext_sdk import errors
from megacontext_sdk.plugins import Plugins

if TYPE_CHECKING:
    from megacontext_sdk import MemorySession


def state_of(session: MemorySession) -> tuple[object, ...]:
    stats = session.stats()
    return (
        (stats.n_tokens, stats.n_messages, stats.seq, stats.epoch, stats.window_rows),
        session._parts.journal.chain,
        session[:],
        session._parts.state.wc.save(),
        session._parts.lexical.n_rows,
    )


_IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}
_CALLS = {
    "empty content": (lambda s: s.append(""), "content", "empty"),
    "whitespace": (lambda s: s.append(" \n\t\u2003"), "content", "whitespace"),
    "empty prompt": (lambda s: s.generate(""), "content", "empty"),
    "whitespace prompt": (lambda s: s.generate("   "), "content", "whitespace"),
    "whitespace in a message": (
        lambda s: s.append([{"role": "user", "content": "ok"}, {"role": "user", "content": " "}]),
        "content",
        "whitespace",
    ),
    "unknown role": (lambda s: s.append("hi", role="wizard"), "role", "wizard"),
    "unknown role of a message": (
        lambda s: s.generate(messages=[{"role": "oracle", "content": "hi"}]),
        "role",
        "oracle",
    ),
    "a part that is no text": (
        lambda s: s.append({"role": "user", "content": [_IMAGE]}),
        "content",
        "image_url",
    ),
    "a part that is no text in a prompt": (
        lambda s: s.generate(messages=[{"role": "user", "content": [_IMAGE]}]),
        "content",
        "image_url",
    ),
    "an id outside the vocabulary": (lambda s: s.append([3, 10**7]), "content", "10000000"),
    "a span past the end": (lambda s: s.read((0, 10**9)), "span", "1000000000"),
    "a reversed span": (lambda s: s.focus.pin((9, 3)), "span", "9"),
    "an empty span": (lambda s: s.focus.pin((3, 3)), "span", "3"),
    "no number of tokens": (lambda s: s.generate("x", max_new_tokens=-4), "max_new_tokens", "-4"),
    "a long stop": (lambda s: s.generate("x", stop="y" * 99), "stop", "32"),
    "metadata too deep": (
        lambda s: s.append("x", metadata={"a": [[[[[[[[[[1]]]]]]]]]]}),
        "metadata",
        "8",
    ),
    "metadata too large": (
        lambda s: s.append("x", metadata={"a": "b" * 70_000}),
        "metadata",
        "65,536",
    ),
    "too much text": (lambda s: s.append("x" * (17 << 20)), "content", "16"),
}


@pytest.mark.parametrize("case", _CALLS)
def test_bad_input_is_named_with_value_and_fix_and_changes_nothing(fill, session, case) -> None:
    call, field, value = _CALLS[case]
    fill(session, 12)
    session.generate("Hello?", max_new_tokens=3)
    before = state_of(session)

    with pytest.raises(errors.ConfigError) as caught:
        call(session)

    assert caught.value.field.startswith(field)
    assert value in str(caught.value)
    assert len(str(caught.value)) < 400
    assert before == state_of(session)
    assert session.generate("Still there?", max_new_tokens=2).message_id is not None


_OPENINGS = {
    "a budget above the trained window": ({"w_max": 1024}, "w_max", "960"),
    "a budget below the minimum tiling": ({"w_max": 200}, "w_max", "raise w_max"),
    "a budget that is no number": ({"w_max": "many"}, "w_max", "many"),
    "a misspelt setting": ({"headrom": 64}, "headrom", "headroom"),
    "a setting out of range": ({"pin_share": 2.0}, "pin_share", "2.0"),
    "an unknown mode": ({"kv_mode": "blend2"}, "kv_mode", "seam"),
    "a model that is no name": ({"model": 7}, "model", "reference"),
    "a storage that is no name": ({"storage": 7}, "storage", "memory"),
    "a missing configuration file": ({"config": "no/such.toml"}, "config", "no/such.toml"),
}


@pytest.mark.parametrize("case", _OPENINGS)
def test_an_opening_that_cannot_work_says_what_would(open_session, case) -> None:
    arguments, field, fix = _OPENINGS[case]

    with pytest.raises(errors.ConfigError) as caught:
        open_session(**arguments)

    assert (field, True) == (caught.value.field, fix in str(caught.value))


@pytest.mark.parametrize("role", ["model", "storage", "focus"])
def test_an_unknown_provider_lists_what_exists_and_what_failed_to_load(
    open_session, role, tmp_path, monkeypatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_acme.py").write_text("raise RuntimeError('no licence')")
    plugins = Plugins.load(environ={}, plugins=(), modules=["broken_acme"])

    with pytest.raises(errors.UnknownProviderError) as caught:
        open_session(**{role: "acme", "plugins": plugins})

    known = {"model": "echo", "storage": "memory", "focus": "heuristic"}[role]
    assert ("acme", role) == (caught.value.name, caught.value.kind)
    assert known in caught.value.available
    assert known in str(caught.value)
    assert "broken_acme" in str(caught.value)
    assert "broken_acme" in " ".join(caught.value.failures)


def test_a_prompt_longer_than_the_budget_is_taken_in_whole_and_compressed(session) -> None:
    prompt = "".join(f"Line {n} of a long report about the weather. " for n in range(60))
    reply = session.generate(prompt, max_new_tokens=10)

    assert prompt == session.messages()[0].text
    assert prompt in session[:]
    assert reply.focus.n_tokens > 4 * 512
    assert max(reply.focus.lod_counts) > 0
    assert reply.focus.cost <= 512


def test_pins_above_their_share_are_refused_and_change_nothing(fill, session) -> None:
    fill(session, 40)
    session.focus.pin((0, 64))
    before = state_of(session), session._parts.state.wc.pins

    with pytest.raises(errors.BudgetError, match="128") as caught:
        session.focus.pin((320, 640))

    assert caught.value.needed > caught.value.available
    assert before == (state_of(session), session._parts.state.wc.pins)
