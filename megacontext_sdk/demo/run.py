"""The demo itself: take in a long history, ask about it, measure. It prints nothing.

`run_demo` yields what happened as it happens; whoever runs it shows that. Every figure comes from
the session's own receipts, replies and statistics.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

import attrs

from megacontext_sdk.demo.facts import is_correct, make_facts
from megacontext_sdk.demo.history import build_history
from megacontext_sdk.demo.texts import open_library
from megacontext_sdk.errors import ConfigError
from megacontext_sdk.results import Completed
from megacontext_sdk.session import MemorySession

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from megacontext_sdk.demo.facts import Fact
    from megacontext_sdk.demo.history import Item
    from megacontext_sdk.memory.lod import Span
    from megacontext_sdk.results import Reply

__all__ = ["Answer", "Began", "DemoSettings", "Progress", "Summary", "run_demo"]

_BATCH_MESSAGES = 64
_ANSWER_TOKENS = 12
_STORY_PROMPT = "Once upon a time"
_STORY_TOKENS = 64
_MOST_STORIES = 8


@attrs.frozen(kw_only=True)
class DemoSettings:
    """What to run.

    Attributes:
        path: where to keep the memory; None uses a temporary folder.
        model, storage: providers.
        n_tokens: length of the history.
        n_facts, n_questions: facts told, and how many of them are asked for.
        w_max: rows of the window.
        seed: fixes facts, depths, order of texts and choice of questions.
        data_dir: folder with the texts; by default the project's, or the packaged books.
        options: further settings of the session, by name. By default no raw first block: measured
            on fresh histories, the reference model with mean gists answers 93 % of the facts with
            a gist as its first row and 86 % with raw text there.
    """

    path: Path | None = None
    model: str = "reference"
    storage: str = "duckdb"
    n_tokens: int = 200_000
    n_facts: int = 50
    n_questions: int = 20
    w_max: int = 896
    seed: int = 0
    data_dir: Path | None = None
    options: Mapping[str, Any] = attrs.field(factory=lambda: {"sink_blocks": 0})


@attrs.frozen
class Began:
    """The memory is open: where it is, and where the texts come from."""

    path: Path
    origin: str


@attrs.frozen
class Progress:
    """Tokens taken in so far, of how many."""

    n_tokens: int
    total: int


@attrs.frozen(kw_only=True)
class Answer:
    """One question answered.

    Attributes:
        fact: what was asked for.
        told_at: tokens of the message that told it.
        text: the model's answer.
        is_right: whether it holds an accepted word.
        source: the span shown in full that holds the fact; if there is none, the best span
            revealed for the question, or None.
        saw_fact: whether all tokens that tell it were shown in full.
        seconds: wall time, refocus included.
        window_rows: rows the model saw.
    """

    fact: Fact
    told_at: Span
    text: str
    is_right: bool
    source: Span | None
    saw_fact: bool
    seconds: float
    window_rows: int


@attrs.frozen(kw_only=True)
class Summary:
    """What came out of a run; all of it measured.

    Attributes:
        n_right, n_asked: answers.
        n_tokens: history, questions and answers included.
        max_rows, w_max: largest window seen and its budget.
        append_tokens_per_second: taking in, durable; None if the memory was there already.
        ms_per_question: median from question to finished answer.
        ms_per_token: from the refocused prompt to the durable reply, over at least 64 tokens of
            free text; what a small model says may be short, so it is asked up to eight times.
        bytes_per_token: on disk, everything.
    """

    n_right: int
    n_asked: int
    n_tokens: int
    max_rows: int
    w_max: int
    append_tokens_per_second: float | None
    ms_per_question: float
    ms_per_token: float
    bytes_per_token: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.n_right / self.n_asked if self.n_asked else 0.0


def run_demo(settings: DemoSettings) -> Iterator[Began | Progress | Answer | Summary]:
    """Run the demo and yield what happens: `Began`, `Progress`, `Answer` ..., `Summary`.

    Raises:
        FileNotFoundError: `settings.data_dir` does not hold the texts.
        ValueError: more facts than there are people and kinds.
        ConfigError: `settings.path` is a memory that does not hold these facts.
        MegaContextError: whatever the session refuses.
    """
    facts = make_facts(settings.n_facts, settings.seed)
    with (
        _folder(settings.path) as path,
        MemorySession.open(
            path,
            model=settings.model,
            storage=settings.storage,
            w_max=settings.w_max,
            **settings.options,
        ) as session,
    ):
        yield Began(path, open_library(settings.data_dir).origin)
        started = perf_counter()
        told = _already_told(session, facts)
        fresh = not told
        for n_tokens in _take_in(session, facts, settings, told) if fresh else ():
            yield Progress(n_tokens, settings.n_tokens)
        taken = session.stats().n_tokens / (perf_counter() - started) if fresh else None
        answers = []
        for fact in _choose(told, settings):
            answers.append(_ask(session, fact, told[fact]))
            yield answers[-1]
        yield _sum_up(session, answers, taken)


@contextmanager
def _folder(path: Path | None) -> Iterator[Path]:
    if path is not None:
        yield path
        return
    with TemporaryDirectory(prefix="megacontext-demo-") as folder:
        yield Path(folder) / "demo.mc"


def _already_told(session: MemorySession, facts: list[Fact]) -> dict[Fact, Span]:
    """Return where an earlier run told the facts; nothing for a new memory."""
    n_tokens = session.stats().n_tokens
    if not n_tokens:
        return {}
    spans = {message.text: message.span for message in session.messages()}
    told = {fact: spans[fact.text] for fact in facts if fact.text in spans}
    if len(told) < len(facts):
        raise ConfigError(
            f"the memory holds {len(told)} of the demo's {len(facts)} facts; choose a new path, "
            "or the seed and number of facts it was made with",
            field="path",
            value=str(session.path),
        )
    return told


def _take_in(
    session: MemorySession, facts: list[Fact], settings: DemoSettings, told: dict[Fact, Span]
) -> Iterator[int]:
    """Append the history in batches; yields the tokens so far and notes where facts stand."""
    n_tokens = session.stats().n_tokens
    batch: list[Item] = []
    history = build_history(
        settings.n_tokens,
        facts,
        seed=settings.seed,
        data_dir=settings.data_dir,
        count=lambda: n_tokens,
    )
    for item in history:
        batch.append(item)
        if len(batch) == _BATCH_MESSAGES:
            n_tokens = _append(session, batch, told)
            batch = []
            yield n_tokens
    if batch:
        yield _append(session, batch, told)


def _append(session: MemorySession, batch: list[Item], told: dict[Fact, Span]) -> int:
    receipt = session.append([{"role": item.role, "content": item.text} for item in batch])
    for item, number in zip(batch, receipt.message_ids, strict=True):
        if item.fact is not None:
            told[item.fact] = session.messages(number, number + 1)[0].span
    return receipt.span.end


def _choose(told: dict[Fact, Span], settings: DemoSettings) -> list[Fact]:
    """Choose what to ask: always the fact at the very start, others at random."""
    facts = list(told)
    rng = random.Random(settings.seed)
    chosen = facts[:1] + rng.sample(facts[1:], max(0, min(settings.n_questions, len(facts)) - 1))
    return chosen[: settings.n_questions]


def _ask(session: MemorySession, fact: Fact, told_at: Span) -> Answer:
    # Unremembered, so that no answer depends on what was asked before.
    reply = session.generate(fact.question, max_new_tokens=_ANSWER_TOKENS, remember=False)
    return Answer(
        fact=fact,
        told_at=told_at,
        text=reply.text.strip(),
        is_right=is_correct(reply.text, fact),
        source=_source(reply, told_at),
        saw_fact=_shown_in_full(reply, told_at),
        seconds=reply.seconds,
        window_rows=reply.usage.window_rows,
    )


def _touches(span: Span, other: Span) -> bool:
    return span.start < other.end and other.start < span.end


def _source(reply: Reply, told_at: Span) -> Span | None:
    """Return the span shown in full that holds the fact, else the best one that was revealed."""
    revealed = [citation.span for citation in reply.citations]
    shown = [entry.span for entry in reply.focus.entries if entry.lod == 0]
    holding = [span for span in (*revealed, *shown) if _touches(span, told_at)]
    return next(iter(holding or revealed), None)


def _shown_in_full(reply: Reply, told_at: Span) -> bool:
    touching = [entry for entry in reply.focus.entries if _touches(entry.span, told_at)]
    return bool(touching) and all(entry.lod == 0 for entry in touching)


def _ms_per_token(session: MemorySession) -> float:
    """Return milliseconds per token of free text, refocus every block and durability included."""
    seconds, n_tokens = 0.0, 0
    for seed in range(_MOST_STORIES):
        items = session.stream(
            _STORY_PROMPT, max_new_tokens=_STORY_TOKENS, temperature=1.0, seed=seed
        )
        next(items)  # the prompt is taken in and the focus is on it
        started = perf_counter()
        for item in items:
            if isinstance(item, Completed):
                n_tokens += item.reply.usage.generated_tokens
        seconds += perf_counter() - started
        if n_tokens >= _STORY_TOKENS:
            break
    return 1e3 * seconds / max(1, n_tokens)


def _sum_up(session: MemorySession, answers: list[Answer], taken: float | None) -> Summary:
    ms_per_token = _ms_per_token(session)
    stats = session.stats()
    times = sorted(answer.seconds for answer in answers)
    return Summary(
        n_right=sum(answer.is_right for answer in answers),
        n_asked=len(answers),
        n_tokens=stats.n_tokens,
        max_rows=max((answer.window_rows for answer in answers), default=0),
        w_max=stats.w_max,
        append_tokens_per_second=taken,
        ms_per_question=1e3 * times[len(times) // 2] if times else 0.0,
        ms_per_token=ms_per_token,
        bytes_per_token=stats.bytes_per_token,
    )
