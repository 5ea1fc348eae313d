"""`SessionMachine`: any order of calls on a session, against plain lists and an in-memory session.

The in-memory session gets the same calls and never closes, so whatever reopening, crashing, forking
or switching generations loses, shows. The lists say what the messages are, whoever computed it.
"""
# ruff: noqa: SIM300 - asserts read expected == actual

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, ClassVar

import attrs
import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from megacontext_sdk.errors import ConfigError
from megacontext_sdk.hookspecs import hookimpl
from megacontext_sdk.plugins import Plugins
from megacontext_sdk.records import StorageSpec
from megacontext_sdk.session import MemorySession
from megacontext_sdk.testing.encoders import NumberedMean
from megacontext_sdk.testing.scratch import scratch_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from megacontext_sdk.contracts.gist import GistEncoder
    from megacontext_sdk.results import Appended

__all__ = ["SessionMachine", "open_session", "plugins_of"]

_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven")
_ROLES = ("user", "assistant", "tool", "system")
_NAME = "conformance"
_OPEN_EVERY = 24  # steps before one that opens a memory, or copies it
_SWITCH_EVERY = 12  # steps before one that replaces a generation


def plugins_of(storage: str) -> Plugins:
    """Return plugins that offer the class of an import string as storage "conformance"."""

    class Offer:
        @hookimpl
        def megacontext_storages(self) -> list[StorageSpec]:
            return [StorageSpec(_NAME, storage, "the class under test")]

    return Plugins.load(plugins=(), modules=(Offer(),), environ={})


def open_session(path: Path | None, plugins: Plugins, **settings: object) -> MemorySession:
    """Open a session with the echo model on that storage; without a path, on the in-memory one."""
    return MemorySession.open(
        path,
        model="echo",
        storage="memory" if path is None else _NAME,
        plugins=plugins,
        config=None,
        w_max=256,
        sinks=(),
        **settings,  # type: ignore[arg-type]
    )


@attrs.define
class Said:
    """A message as the lists know it."""

    text: str
    role: str
    trust: int
    is_forgotten: bool = False


def same_content(expected: MemorySession, found: MemorySession) -> None:
    """Compare text, ids, messages and every gist of two sessions, once all are made."""
    ours, theirs = expected._parts, found._parts  # noqa: SLF001 - the kit looks behind sessions
    for tree in (ours.tree, theirs.tree):
        tree.wait_for_gists()
        assert 0 == tree.n_missing_gists, "gists are missing"
    assert ours.tree.n_tokens == theirs.tree.n_tokens
    assert expected[:] == found[:]
    assert ours.tree.tail.tolist() == theirs.tree.tail.tolist()
    assert ours.tree.top_lod == theirs.tree.top_lod
    for lod in range(1, ours.tree.top_lod + 1):
        nodes = np.arange(ours.tree.n_nodes(lod))
        same = ours.tree.gists(lod, nodes).tobytes() == theirs.tree.gists(lod, nodes).tobytes()
        assert same, f"gists of LOD{lod} differ"


def _may_open(machine: SessionMachine) -> bool:
    """Tell whether a step that opens a memory may be taken again."""
    return machine.n_steps - machine.last_costly >= _OPEN_EVERY


def _may_switch(machine: SessionMachine) -> bool:
    """Tell whether a step that replaces a generation may be taken again."""
    return machine.n_steps - machine.last_costly >= _SWITCH_EVERY


class SessionMachine(RuleBasedStateMachine):
    """Rules are calls; each makes the same call on the oracle.

    Attributes:
        storage: import string of the class under test.
        encoder: makes gist encoders by number, which differ in name and fingerprint only; 0 is the
            one that sessions begin with. The oracle's gists never lag.
    """

    storage: ClassVar[str]
    encoder: ClassVar[Callable[[int], GistEncoder]] = NumberedMean

    def __init__(self) -> None:
        super().__init__()
        self.folder = scratch_folder()
        self.plugins = plugins_of(self.storage)
        self.path = self.folder / "0.mc"
        self.session = self.opened()
        self.oracle = open_session(
            None, self.plugins, gist=type(self).encoder(0), gist_background="off"
        )
        self.said: list[Said] = []
        self.snaps: dict[str, int] = {}
        self.keys: dict[str, tuple[str, Appended]] = {}
        self.n_steps = self.last_costly = self.n_paths = 0

    def teardown(self) -> None:
        """Close both."""
        try:
            self.check_everything()
        finally:
            self.session.close()
            self.oracle.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def opened(self) -> MemorySession:
        """Open the memory under test."""
        return open_session(self.path, self.plugins, gist=type(self).encoder(0))

    def new_path(self) -> Path:
        """Return a path nobody has used."""
        self.n_paths += 1
        return self.folder / f"{self.n_paths}.mc"

    def costly(self) -> None:
        """Note that a step was costly, and compare everything after it."""
        self.last_costly = self.n_steps
        self.check_everything()

    def check_everything(self) -> None:
        """Compare with the oracle and with the lists."""
        same_content(self.oracle, self.session)
        for session in (self.oracle, self.session):
            found = session.messages()
            kept = [
                Said(one.text, one.role, int(one.trust), is_forgotten=one.is_forgotten)
                for one in found
            ]
            wrong = [pair for pair in zip(self.said, kept, strict=False) if pair[0] != pair[1]]
            assert [] == wrong, "messages differ: (expected, found)"
            assert len(self.said) == len(kept)

    def text(self, n_words: int, seed: int) -> str:
        """Return words that name the message, so that no two are alike."""
        rng = np.random.default_rng((seed, len(self.said)))
        # Text of a few words alone is quoted by chance wherever two blocks lie side by side in a
        # file, and the proof of a forget would have to call that a hit.
        words = [
            f"{_WORDS[at]} {rng.bytes(4).hex()}" for at in rng.integers(0, len(_WORDS), n_words)
        ]
        return f"m{len(self.said)} {rng.bytes(4).hex()} {' '.join(words)}".strip()

    # --- appending ---------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        """Start with a message, so that there is something to look at."""
        self.append("user", 3, 0, None)

    @rule(
        role=st.sampled_from(_ROLES),
        n_words=st.integers(0, 20),
        seed=st.integers(0, 99),
        trust=st.none() | st.integers(0, 4),
    )
    def append(self, role: str, n_words: int, seed: int, trust: int | None) -> None:
        """Append one message."""
        text = self.text(n_words, seed)
        self._append(text, role=role, trust=trust)

    def _append(
        self, text: str, *, role: str, trust: int | None, key: str | None = None
    ) -> Appended:
        self.n_steps += 1
        expected, found = (
            session.append(text, role=role, trust=trust, idempotency_key=key)
            for session in (self.oracle, self.session)
        )
        assert expected.span == found.span
        # Message numbers differ: only one of the two notes forks and what opening changes.
        assert len(expected.message_ids) == len(found.message_ids) == 1
        kept = self.oracle.messages(-1)[-1]
        assert (expected.message_ids[0], text) == (kept.message_id, kept.text)
        self.said.append(Said(text, role, int(kept.trust)))
        assert trust is None or trust == int(kept.trust)
        return found

    @rule(n_words=st.integers(0, 12), seed=st.integers(0, 99))
    def append_with_a_key(self, n_words: int, seed: int) -> None:
        """Append under a key of its own."""
        text, key = self.text(n_words, seed), f"key {len(self.keys)} {self.n_steps}"
        receipt = self._append(text, role="user", trust=None, key=key)
        self.keys[key] = (text, receipt)

    @precondition(lambda self: self.keys)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        """The same key and content land where they did; other content is refused."""
        self.n_steps += 1
        key = data.draw(st.sampled_from(sorted(self.keys)))
        text, receipt = self.keys[key]
        again = self.session.append(text, idempotency_key=key)
        assert again.duplicate, "a retry was stored twice"
        assert receipt.span == again.span
        try:
            self.session.append(text + "!", idempotency_key=key)
        except ConfigError:
            return
        raise AssertionError("a key was taken for other content")

    # --- reading -----------------------------------------------------------------------------

    @rule(start=st.floats(0, 1), stop=st.floats(0, 1))
    def read(self, start: float, stop: float) -> None:
        """Any slice reads the same."""
        self.n_steps += 1
        n_tokens = self.oracle._parts.tree.n_tokens  # noqa: SLF001 - see same_content
        first, last = sorted((round(start * n_tokens), round(stop * n_tokens)))
        assert self.oracle[first:last] == self.session[first:last]

    @rule(word=st.sampled_from(_WORDS))
    def search(self, word: str) -> None:
        """A search finds the same, and nothing forgotten."""
        self.n_steps += 1
        expected, found = (one.search(word, k=5) for one in (self.oracle, self.session))
        assert [(hit.span, hit.text) for hit in expected] == [(hit.span, hit.text) for hit in found]

    @rule()
    def flush(self) -> None:
        """Checkpoint."""
        self.n_steps += 1
        self.session.flush()

    # --- ending and beginning ----------------------------------------------------------------

    @precondition(_may_open)
    @rule()
    def reopen(self) -> None:
        """Close and open: everything is there."""
        self.n_steps += 1
        self.session.close()
        self.session = self.opened()
        self.costly()

    @precondition(_may_open)
    @rule()
    def crash(self) -> None:
        """Go on with a copy of the files as they are now, as after a crash."""
        self.n_steps += 1
        copy = self.new_path()
        shutil.copytree(self.path, copy)
        self.session.close()
        shutil.rmtree(self.path)
        self.path = copy
        self.session = self.opened()
        self.costly()

    # --- keeping -----------------------------------------------------------------------------

    @rule(name=st.sampled_from(["one", "two"]))
    def snapshot(self, name: str) -> None:
        """Name this place; a name in use is refused."""
        self.n_steps += 1
        if name in self.snaps:
            return
        expected, found = (one.snapshot(name) for one in (self.oracle, self.session))
        assert (expected.n_tokens, len(self.said)) == (found.n_tokens, len(self.said))
        self.snaps[name] = len(self.said)

    @precondition(lambda self: self.snaps and _may_switch(self))
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        """Go back to a named place; later names are gone."""
        self.n_steps += 1
        name = data.draw(st.sampled_from(sorted(self.snaps)))
        for session in (self.oracle, self.session):
            session.restore(name)
        kept = self.snaps[name]
        del self.said[kept:]
        self.snaps = {one: at for one, at in self.snaps.items() if at <= kept}
        names = [sorted(one.name for one in s.snapshots()) for s in (self.oracle, self.session)]
        assert names[0] == names[1]
        self.snaps = {one: at for one, at in self.snaps.items() if one in names[0]}
        end = self.oracle._parts.tree.n_tokens  # noqa: SLF001 - see same_content
        self.keys = {key: kept for key, kept in self.keys.items() if kept[1].span.end <= end}
        self.costly()

    @precondition(_may_open)
    @rule(n_words=st.integers(1, 15))
    def fork(self, n_words: int) -> None:
        """A fork has everything; what it appends is its own."""
        self.n_steps += 1
        path = self.new_path()
        fork = self.session.fork(path)
        try:
            same_content(self.oracle, fork)
            fork.append(self.text(n_words, 1))
        finally:
            fork.close()
        shutil.rmtree(path)
        self.costly()

    @precondition(lambda self: _may_switch(self) and self.forgettable())
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """Forget one or two messages: they are empty everywhere, and the rest stays."""
        self.n_steps += 1
        numbers = [at for at, said in enumerate(self.said) if not said.is_forgotten]
        chosen = data.draw(st.lists(st.sampled_from(numbers), min_size=1, max_size=2, unique=True))
        expected, found = (
            one.forget(message_ids=[one.messages()[at].message_id for at in chosen])
            for one in (self.oracle, self.session)
        )
        assert (expected.spans, expected.tokens) == (found.spans, found.tokens)
        assert found.verified, "forgotten content is still in the files"
        texts = {self.said[at].text for at in chosen}
        for at in chosen:
            self.said[at].text, self.said[at].is_forgotten = "", True
        self.keys = {key: kept for key, kept in self.keys.items() if kept[0] not in texts}
        for hit in self.session.search(" ".join(texts)[:200] or "m0", k=5):
            assert hit.text not in texts
        self.costly()

    def forgettable(self) -> bool:
        """Tell whether there is a message left to forget."""
        return any(not said.is_forgotten for said in self.said)

    @precondition(_may_switch)
    @rule(number=st.integers(0, 3))
    def rebuild(self, number: int) -> None:
        """Making the gists again, with the last encoder or another one, makes the same gists."""
        self.n_steps += 1
        self.session.rebuild(gist=type(self).encoder(number) if number else None)
        self.costly()
