"""One session, many threads: the memory may be replaced under them, and nobody sees half of it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor


def write(session, number):
    for step in range(12):
        session.append(f"Thread {number} says {step}.")


def look(session, stop):
    while not stop.is_set():
        report = session.focus.report()
        assert report.n_tokens == report.entries[-1].span.end
        assert all(hit.text for hit in session.search("Thread says harbour", 4))
        assert 0 == session.stats().gists_missing


def test_threads_append_and_search_while_the_memory_is_replaced(place, fill):
    stop = threading.Event()
    with place.open(strict=False) as session:
        fill(session, 10)
        session.snapshot("here")
        base = session[:]
        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(look, session, stop) for _ in range(2)]
            writers = [pool.submit(write, session, number) for number in range(2)]
            try:
                for _ in range(3):
                    session.restore("here")
                    session.rebuild()
                    session.forget(span=(0, 8))
                for one in writers:
                    one.result()
            finally:
                stop.set()
            for one in readers:
                one.result()
        assert session.verify().is_sound
        session.restore("here")
        assert base[-40:] == session[:][-40:]
