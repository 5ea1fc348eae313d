"""SIGKILL while a session forgets or makes its gists again: all of it happened, or nothing.

Both build beside what is there and switch: whoever opens afterwards finds the one or the other, and
what was acknowledged as forgotten is in no byte any more. Gists that were still to be made in the
background are made by whoever opens next.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from megacontext_sdk.testing.crash_base import CrashBase
from megacontext_sdk.testing.encoders import NumberedMean, TrailingMean
from megacontext_sdk.testing.machine import open_session, plugins_of, same_content
from megacontext_sdk.testing.story import secret

if TYPE_CHECKING:
    from pathlib import Path

    from megacontext_sdk.session import MemorySession
    from megacontext_sdk.testing.victims import Victims

__all__ = ["SessionKills", "tell"]

_KILLS = 12
_MESSAGES = 120


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

    def test_a_kill_with_gists_pending_loses_none(self, victims: Victims, copies: Path) -> None:
        """One memory, killed again and again while its encoder lags; in the end all are there."""
        rng, path, plugins = Random(5), copies / "alice.mc", plugins_of(self.storage)
        n_pending = 0
        with open_session(None, plugins, gist=TrailingMean(), gist_background="off") as whole:
            for number in range(_KILLS * self.effort):
                victim = victims.start("lag_session", path)
                said = [victim.hear() for _ in range(rng.randrange(1, 40))]
                victim.linger(rng.random() * 0.02)
                said += victim.kill()
                with open_session(path, plugins, gist=TrailingMean()) as session:
                    found = [message.text for message in session.messages()]
                    assert len(found) >= int(said[-1])
                    assert found == [secret(at) for at in range(len(found))]
                    for at in range(whole.stats().n_messages, len(found)):
                        whole.append(secret(at))
                    stats = session.stats()
                    n_pending += sum(stats.nodes.values()) - stats.gists_reused
                    if number % 3 == 2:  # mostly the next victim finds some pending, too
                        same_content(whole, session)
            with open_session(path, plugins, gist=TrailingMean()) as session:
                session.flush()
                assert session.stats().gists_missing == 0
                same_content(whole, session)
        assert n_pending > 0, "nothing was pending; the encoder is not slow enough"

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
