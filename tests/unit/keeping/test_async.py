"""The awaitable session has the same names, and does the same."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from megacontext_sdk import AsyncMemorySession, MemorySession, errors

ELSEWHERE = {"focus"}  # awaitable as `focus_report`


def test_every_public_method_is_awaitable():
    names = {
        name
        for name, _ in inspect.getmembers(MemorySession, callable)
        if not name.startswith("_") and name not in ELSEWHERE
    }
    assert names <= set(dir(AsyncMemorySession))
    for name in names - {"stream"}:
        assert inspect.iscoroutinefunction(getattr(AsyncMemorySession, name)), name


def test_the_life_of_a_memory(place, model, tmp_path):
    async def live():
        session = await AsyncMemorySession.open(
            place.path(), model=model, storage=place.storage, w_max=512
        )
        async with session:
            receipt = await session.append("The gate code is 4711.")
            await session.snapshot("here")
            await session.append("The zeppelin lands at noon.")
            await session.restore("here")
            assert ["here"] == [one.name for one in await session.snapshots()]
            assert "4711" in await session.read(receipt.span)
            async with await session.fork(place.path("b.mc")) as fork:
                assert 1 == len(await fork.messages())
                forgotten = await fork.forget(message_ids=receipt.message_ids)
                assert forgotten.verified
            exported = await session.export(tmp_path / "out.bundle")
            assert (await session.verify()).is_sound
            assert 0 == (await session.rebuild()).encoded
            await session.flush()
            assert (await session.audit(4)).n_rows >= 0
        copy = await AsyncMemorySession.load(
            exported.path, into=place.path("c.mc"), model=model, storage=place.storage
        )
        async with copy:
            assert "4711" in (await copy.messages())[0].text
        if place.path() is not None:
            assert not (await AsyncMemorySession.recover(place.path(), dry_run=True)).is_damaged

    asyncio.run(live())


def test_errors_come_through(place, model):
    async def fail():
        async with await AsyncMemorySession.open(
            place.path(), model=model, storage=place.storage
        ) as session:
            await session.restore("nowhere")

    with pytest.raises(errors.ConfigError, match="nowhere"):
        asyncio.run(fail())
