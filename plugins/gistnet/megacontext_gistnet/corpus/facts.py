"""Made-up conversations: facts told once and asked for later, with other talk in between.

They teach a model to look back; every answer stands earlier in the same document. The project's
recall benchmark draws its facts from `random.Random(0)`, `random.Random(1)` and so on; nothing here
does, so that its questions stay unseen.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import attrs

from megacontext_gistnet.corpus.draft import Draft, Turn
from megacontext_gistnet.corpus.fact_kinds import KINDS, NAMES
from megacontext_gistnet.corpus.reading import read_drafts, spoken_turns
from megacontext_gistnet.corpus.source import is_held_out
from megacontext_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from megacontext_gistnet.corpus.fact_kinds import FactKind
    from megacontext_gistnet.corpus.source import Source

__all__ = ["FactSource", "ToldFact", "fact_dialogues", "read_filler", "tell_facts"]

_REPLIES: Final = (
    "Okay.", "I see.", "I will remember that.", "Good to know.", "Thank you.", "Noted.", "Got it.",
)  # fmt: skip
_OPENINGS: Final = ("", "", "", "", "By the way, ", "Remember this: ", "I heard that ", "Note: ")
_PAGE_CHARACTERS: Final = 900


@attrs.frozen
class ToldFact:
    """One fact: its kind, how it is told, how it is asked for, and the exact answer."""

    kind: str
    statement: str
    question: str
    answer: str


@attrs.frozen
class FactSource:
    """Made-up fact conversations as a source of documents, held out by the same hash as texts.

    Attributes:
        n_documents: how many, held-out ones included.
        filler: texts whose turns and paragraphs stand between the facts; held-out ones stand in
            held-out documents only.
        seed: another seed, other facts.
        max_characters: length at which a document stops taking filler.
    """

    n_documents: int
    filler: tuple[Source, ...] = ()
    seed: int = 0
    max_characters: int = 3600

    def __attrs_post_init__(self) -> None:
        if self.n_documents < 1:
            message = f"n_documents={self.n_documents} of a FactSource; use 1 or more"
            raise ConfigError(message, field="n_documents", value=self.n_documents)

    def drafts(self) -> Iterator[Draft]:
        """Yield the documents.

        Raises:
            ConfigError: the filler cannot be read.
        """
        sides: dict[bool, list[tuple[Turn, ...]]] = {False: [], True: []}
        for held_out, turns in read_filler(self.filler):
            sides[held_out].append(turns)
        for at in range(self.n_documents):
            doc_id = f"facts:{self.seed}:{at}"
            held_out = is_held_out(doc_id)
            turns = _conversation(f"{self.seed}/{at}", sides[held_out], self.max_characters)
            yield Draft(doc_id, "facts", turns, held_out)


def fact_dialogues(
    n: int, seed: int, filler: Sequence[Sequence[Turn]], *, max_characters: int = 3600
) -> Iterator[tuple[Turn, ...]]:
    """Yield conversations as messages; the same seed gives the same ones.

    Args:
        n: how many.
        seed: of all of them.
        filler: conversations or pages, as messages; pieces of them stand between the facts.
        max_characters: length at which a conversation stops taking filler.
    """
    for at in range(n):
        yield _conversation(f"{seed}/{at}", filler, max_characters)


def read_filler(sources: Sequence[Source]) -> Iterator[tuple[bool, tuple[Turn, ...]]]:
    """Yield `(is held out, messages)`: chats as they are, other texts page by page.

    Raises:
        ConfigError: a source cannot be read.
    """
    for source in sources:
        for draft in read_drafts(source):
            if not isinstance(draft.content, str):
                yield draft.is_held_out, draft.content
                continue
            chat = spoken_turns(draft.content)
            pages = [chat] if chat else [(page,) for page in _pages(draft.content)]
            yield from ((draft.is_held_out, turns) for turns in pages)


def tell_facts(n: int, rng: random.Random, names: Sequence[str] = NAMES) -> list[ToldFact]:
    """Make facts of which no two share kind, person and thing, so each has one answer.

    Args:
        n: how many.
        rng: where chance comes from.
        names: whom they are about.
    """
    facts: dict[tuple[str, str, str], ToldFact] = {}
    # A few kinds and people come again and again, so that an answer needs the right name.
    kinds = rng.sample(KINDS, min(len(KINDS), max(2, n - rng.randint(0, n // 2))))
    people = rng.sample(names, min(len(names), max(2, n - rng.randint(0, n // 3))))
    while len(facts) < n:
        kind, person = rng.choice(kinds), rng.choice(people)
        thing = rng.choice(kind.things)
        facts.setdefault((kind.name, person, thing), _tell(kind, person, thing, rng))
    return list(facts.values())


def _tell(kind: FactKind, person: str, thing: str, rng: random.Random) -> ToldFact:
    words = {"name": person, "thing": thing, "answer": kind.answer(rng)}
    return ToldFact(
        kind.name,
        rng.choice(kind.statements).format(**words),
        rng.choice(kind.questions).format(**words),
        words["answer"],
    )


def _conversation(
    seed: str, filler: Sequence[Sequence[Turn]], max_characters: int
) -> tuple[Turn, ...]:
    """Tell facts, talk about something else, ask; sometimes ask some of them before the rest."""
    rng = random.Random(f"megacontext facts {seed}")
    facts = tell_facts(rng.randint(3, 12), rng)
    talk = _Talk(filler, rng, rng.randint(max_characters // 5, max_characters))
    replies = rng.random() < 0.7
    chat: list[Turn] = []
    waiting: list[ToldFact] = []
    early = rng.choice((0.0, 0.0, 0.5))
    for fact in facts:
        chat.append(Turn("user", _opened(rng.choice(_OPENINGS), fact.statement)))
        chat += [Turn("assistant", rng.choice(_REPLIES))] if replies else []
        waiting.append(fact)
        chat += talk.some(rng.randint(0, 3))
        if rng.random() < early:
            chat += _ask(waiting.pop(rng.randrange(len(waiting))))
    rng.shuffle(waiting)
    chat += talk.some(rng.randint(0, 4))
    for fact in waiting:
        chat += _ask(fact)
        chat += talk.some(1 if rng.random() < 0.4 else 0)
    return tuple(chat)


def _opened(opening: str, statement: str) -> str:
    """Put an opening in front; a name or "I" keeps its capital."""
    if opening.endswith((", ", "that ")) and statement.startswith(("The ", "We ", "My ")):
        statement = statement[0].lower() + statement[1:]
    return opening + statement


def _ask(fact: ToldFact) -> tuple[Turn, Turn]:
    return Turn("user", fact.question), Turn("assistant", fact.answer)


class _Talk:
    """Other talk for one conversation, taken from a few texts in their order."""

    def __init__(
        self, filler: Sequence[Sequence[Turn]], rng: random.Random, max_characters: int
    ) -> None:
        self._filler, self._rng, self._left = filler, rng, max_characters
        self._turns: list[Turn] = []

    def some(self, n: int) -> list[Turn]:
        """Return up to `n` turns more, fewer when the conversation is long enough."""
        taken: list[Turn] = []
        while len(taken) < n and self._left > 0 and self._filler:
            if not self._turns:
                self._turns = list(self._rng.choice(self._filler))
            taken.append(self._turns.pop(0))
            self._left -= len(taken[-1].text)
        return taken


def _pages(text: str) -> Iterator[Turn]:
    """Cut a text into messages of some paragraphs each."""
    page: list[str] = []
    for paragraph in text.split("\n\n"):
        page.append(paragraph.strip())
        if sum(map(len, page)) >= _PAGE_CHARACTERS:
            yield Turn("user", "\n\n".join(page)[: 2 * _PAGE_CHARACTERS])
            page = []
    if any(page):
        yield Turn("user", "\n\n".join(page)[: 2 * _PAGE_CHARACTERS])
