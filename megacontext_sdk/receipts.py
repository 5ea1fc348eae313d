"""What the keeping of a memory returns: forgetting, recovering, checking, rebuilding, moving.

Frozen values with `to_dict()`, made of counts, numbers and places. None holds memory content, nor a
hash of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from megacontext_sdk.results import Result

if TYPE_CHECKING:
    from megacontext_sdk.memory.lod import Span

__all__ = ["Exported", "Rebuilt", "Receipt", "Recovery", "ScrubReport", "Snapshot"]


@attrs.frozen(kw_only=True)
class Receipt(Result):
    """What `forget` did, or with `dry_run` would do.

    Attributes:
        dry_run: nothing was changed.
        seq: commit that noted it; None for a dry run.
        spans: token spans that read as forgotten, ascending.
        messages: numbers of the messages that lost content, ascending.
        tokens: how many tokens.
        gists_dropped, gists_rebuilt: ancestor nodes, and how many were made again at once.
        files_removed: files deleted, of caches, rescue and the old generation.
        bytes_scanned: bytes of every file of the memory, read afterwards.
        needles: pieces of forgotten content that were searched for.
        unscannable: messages too short to make a needle of.
        hits: needles found that no surviving row explains, or in gists that had to be made anew.
        echoes: messages that still quote forgotten content in their own words.
        forks: memories made from this one that held it, and were told to forget as well.
        exports: bundles and files written earlier that may hold it: out of reach.
        verified: there is no hit, no index, cache or generation from before is left, and the memory
            reads as forgotten; None for a dry run.
    """

    dry_run: bool
    seq: int | None
    spans: tuple[Span, ...]
    messages: tuple[int, ...]
    tokens: int
    gists_dropped: int
    gists_rebuilt: int = 0
    files_removed: int = 0
    bytes_scanned: int = 0
    needles: int = 0
    unscannable: int = 0
    hits: int = 0
    echoes: tuple[int, ...] = ()
    forks: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()
    verified: bool | None = None


@attrs.frozen(kw_only=True)
class Recovery(Result):
    """What `recover` found, and did unless `dry_run`.

    Attributes:
        dry_run: nothing was changed.
        path: the memory.
        is_damaged: there was something to recover.
        reason: what is wrong, in words; empty if nothing is.
        have_seq: last commit that holds; everything up to it survives.
        want_seq: last commit that was acknowledged, None if nobody can say.
        n_tokens, n_messages: what survives.
        lost_commits: acknowledged commits behind it, None if nobody can say.
        rescue: where the damaged files were put; None if nothing was moved.
    """

    dry_run: bool
    path: str
    is_damaged: bool
    reason: str
    have_seq: int
    want_seq: int | None
    n_tokens: int
    n_messages: int
    lost_commits: int | None
    rescue: str | None = None


@attrs.frozen(kw_only=True)
class ScrubReport(Result):
    """What reading everything found.

    Attributes:
        path: the memory, None for one in this process.
        commits, blocks, messages, gists: rows read and checked.
        bytes_read: bytes of those rows.
        problems: one sentence each, without content; empty if all is well.
        seconds: how long it took.
    """

    path: str | None
    commits: int
    blocks: int
    messages: int
    gists: int
    bytes_read: int
    problems: tuple[str, ...]
    seconds: float

    @property
    def is_sound(self) -> bool:
        """Nothing was found."""
        return not self.problems


@attrs.frozen(kw_only=True)
class Rebuilt(Result):
    """What `rebuild` did.

    Attributes:
        gist: encoder now in use.
        version: its number in the memory's table of encoders.
        encoded: nodes encoded by this call.
        reused: nodes that were there already (a rebuild that was cut short goes on).
        kept_old: nodes whose new gist was not finite, so the one before serves.
        seconds: how long it took.
    """

    gist: str
    version: int
    encoded: int
    reused: int
    kept_old: int
    seconds: float


@attrs.frozen(kw_only=True)
class Exported(Result):
    """What `export` wrote: path, format, tokens, messages, bytes."""

    path: str
    format: str
    n_tokens: int
    n_messages: int
    n_bytes: int


@attrs.frozen(kw_only=True)
class Snapshot(Result):
    """A name for a place in the history.

    Attributes:
        name: as given.
        seq: last commit it covers.
        n_tokens, n_messages: length of the history there; settings count as messages.
        ts_us: when it was taken, microseconds since 1970.
    """

    name: str
    seq: int
    n_tokens: int
    n_messages: int
    ts_us: int
