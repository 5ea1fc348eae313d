"""SIGKILL while a session forgets or makes its gists again: all of it happened, or nothing.

Both build beside what is there and switch: whoever opens afterwards finds the one or the other, and
what was acknowledged as forgotten is in no byte any more.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from megacontext_sdk.testing.crash_base import CrashBase
from megacontext_sdk.testing.encoders import NumberedMean
from megacontext_sdk.testing.machine import open_session, plugins_of, same_content

if TYPE_CHECKING:
    from pathlib import Path

    from megacontext_sdk.session import MemorySession
    from megacontext_sdk.testing.victims import Victims

__all__ = ["SessionKills", "secret", "tell"]

_KILLS = 12
_MESSAGES = 120


def secret(number: int) -> str:
    """Return a text that occurs nowhere else."""
    return f"number {number} marker-{number * 7919:06d}-{'abcdefgh'[number % 8] * 9} of the story"


def tell(session: MemorySession) -> None:
    """Append the messages that will be forgotten one by one."""
    for number in range(_MESSAGES):
        session.append(secret(number))
    session.flush()


class SessionKills(CrashBase):
    """Twelve kills each while forgetting and rebuilding."""

    @pytest.mark.parametrize("scenario", ["forget", "rebuild"])
    def test_a_kill_while_a_generation_is_replaced_leaves_the_old_one_or_the_new_one(
        self, victims: Victims, copies: Path, scenario: str
    ) -> None:
        """What was acknowledged as forgotten stays so; everything else is as it was told."""
        rng, path = Random(4), copies
        plugins = plugins_of(self.storage)
        with open_session(None, plugins) as whole:
            tell(whole)
            done = 0
            for number in range(_KILLS * self.effort):
                # A victim must not run out of things to forget.
                if not number or (scenario == "forget" and 2 * done > _MESSAGES):
                    done, path = 0, copies / f"alice-{number}.mc"
                    with open_session(path, plugins) as session:
                        tell(session)
                victim = victims.start(f"{scenario}_session", path, first=done)
                said = [victim.hear()]
                victim.linger(rng.random() * 0.25)
                said += victim.kill()
                with open_session(path, plugins) as session:
                    done = int(said[-1])
                    if scenario == "forget":
                        done = self._check_forgotten(session, path, done)
                    else:
                        self._check_rebuilt(whole, session, done)

    def _check_rebuilt(self, whole: MemorySession, session: MemorySession, done: int) -> None:
        """Compare gists before and after the rebuild that was cut short has gone on to its end."""
        same_content(whole, session)
        rebuilt = session.rebuild(gist=NumberedMean(done))
        assert rebuilt.encoded + rebuilt.reused == sum(session.stats().nodes.values())
        same_content(whole, session)

    def _check_forgotten(self, session: MemorySession, path: Path, least: int) -> int:
        """Compare messages; return how many are forgotten."""
        found = session.messages()
        assert len(found) == _MESSAGES
        done = sum(message.is_forgotten for message in found)
        assert done in {least, least + 1}
        texts = [message.text for message in found]
        assert texts == [""] * done + [secret(number) for number in range(done, _MESSAGES)]
        data = b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())
        left = [number for number in range(done) if secret(number)[9:].encode() in data]
        assert left == [], f"forgotten messages are still in a file: {left}"
        if done < _MESSAGES:
            assert secret(_MESSAGES - 1)[9:].encode() in data, "the search for bytes finds nothing"
        return done
