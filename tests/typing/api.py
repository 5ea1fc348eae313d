"""The public API as a user would write it. It only has to type-check; nothing runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacontext_sdk import (
    Appended,
    AsyncMemorySession,
    Completed,
    Config,
    Exported,
    FocusChanged,
    FocusReport,
    Hit,
    MemorySession,
    MemoryStore,
    NodeId,
    Rebuilt,
    Receipt,
    Recovery,
    Reply,
    ScrubReport,
    Snapshot,
    Span,
    Stats,
    StorageSpec,
    TextDelta,
    errors,
    hookimpl,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def first_memory() -> str:
    """Open, append, generate, read."""
    with MemorySession.open("alice.mc", model="reference", w_max=896) as session:
        receipt: Appended = session.append("My cat is called Turing.", role="user")
        session.append([{"role": "user", "content": "Hello"}], idempotency_key="call-17")
        reply: Reply = session.generate("What is my cat called?", max_new_tokens=16)
        hits: list[Hit] = session.search("cat", k=4)
        stats: Stats = session.stats()
        span: Span = receipt.span
        text: str = session.read(span)
        return text + reply.text + hits[0].text + str(stats.n_tokens)


def streaming(session: MemorySession) -> str:
    """Tell the items of a stream apart by their type."""
    parts: list[str] = []
    for item in session.stream("And my dog?"):
        if isinstance(item, TextDelta):
            parts.append(item.text)
        elif isinstance(item, FocusChanged):
            parts.append(str(item.to_dict()))
        elif isinstance(item, Completed):
            parts.append(item.reply.text)
    return "".join(parts)


def focusing(session: MemorySession) -> FocusReport:
    """Look at the focus and move it."""
    session.focus.pin(Span(0, 32))
    session.focus.unpin(Span(0, 32))
    return session.focus.report("cat")


async def awaiting() -> str:
    """Use the same names, awaited."""
    async with await AsyncMemorySession.open(None, model="echo", storage="memory") as session:
        await session.append("My cat is called Turing.")
        reply = await session.generate("What is my cat called?")
        return reply.text


def settings() -> int:
    """Load settings and read one."""
    config = Config.load("memory.toml", {}, kv_mode="exact")
    return config.replace(w_max=512).budget(1024).w_max


def handling(session: MemorySession) -> int:
    """Catch errors by what one can do next."""
    try:
        session.append("text")
    except errors.StorageFullError as error:
        return error.needed
    except errors.ConfigError as error:
        return len(error.field)
    return NodeId(1, 0).lod


@hookimpl
def megacontext_storages() -> Iterator[StorageSpec]:
    """Offer a storage."""
    yield StorageSpec("acme", "acme_memory.store:Store", "Blocks in Acme Cloud", requires="acme")


def keeping(session: MemorySession) -> str:
    """Snapshots, forks, forgetting, moving, mending."""
    before: Snapshot = session.snapshot("before")
    after: Snapshot = session.restore(before.name)
    with session.fork("plan-b.mc", at="before") as fork:
        receipt: Receipt = fork.forget(where={"source": "mail"}, dry_run=True)
    exported: Exported = session.export("notes.bundle", format="bundle")
    seen: list[tuple[int, int]] = []
    rebuilt: Rebuilt = session.rebuild(progress=lambda *done: seen.append(done))
    report: ScrubReport = session.verify()
    recovery: Recovery = MemorySession.recover("notes.mc", dry_run=True)
    copy: MemorySession = MemorySession.load(exported.path, into="copy.mc", w_max=896)
    with copy, MemorySession.open("notes.mc", at="before", read_only=True) as view:
        return f"{after}{receipt}{rebuilt}{report}{recovery}{view[:]}{copy[:]}"


def tenants() -> tuple[str, ...]:
    """One store per tenant."""
    store = MemoryStore("memories", namespace=("acme", "support"), model="echo")
    with store.session("alice", w_max=896) as session:
        session.append("I prefer tea.")
    store.delete("alice")
    return store.list()


async def awaitable(session: AsyncMemorySession) -> bool:
    """The same names, awaitable."""
    await session.snapshot("before")
    fork: AsyncMemorySession = await session.fork(None)
    receipt: Receipt = await fork.forget(everything=True)
    return bool(receipt.verified)
