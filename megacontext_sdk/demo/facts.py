"""Facts told in plain chat messages, and the questions that ask for them.

The wording stays within what the reference model can answer: one word, told once. This module
knows no session and no text around the facts.
"""

from __future__ import annotations

import random
import re

import attrs

__all__ = ["KINDS", "NAMES", "Fact", "Kind", "is_correct", "make_facts"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Alma Anna Ben Boris Carla Clara David Dora Emma Erik Felix Fiona George Grace Henry Hugo Ines "
    "Iris Jack Jonas Karin Kate Lars Leo Maria Mona Nina Noah Olga Otto Paul Peter Quinn Rosa Ruth "
    "Sam Sandra Simon Theo Tina Umar Ursula Vera Victor Wanda Xenia Yara Yusuf Zara Zoe"
)
"""First names the reference model learned to read as names; for others it answers less often."""


@attrs.frozen
class Kind:
    """One kind of fact: its wordings, its questions, the things and answers that fill them.

    Attributes:
        name: what is known, such as "city".
        statements: ways to tell it, with fields `name`, `thing` and `answer`.
        questions: ways to ask for it, with fields `name` and `thing`.
        answers: words that answer it.
        things: what belongs to the person, for kinds that need it.
    """

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    things: tuple[str, ...] = ("",)


@attrs.frozen
class Fact:
    """One fact: how it is told, how it is asked for, and what answers it.

    Attributes:
        kind: name of its `Kind`.
        person: whom it is about; unique among up to `len(NAMES)` facts of one call.
        text: the message that tells it.
        question: the message that asks for it.
        answers: accepted words.
    """

    kind: str
    person: str
    text: str
    question: str
    answers: tuple[str, ...]


KINDS = (
    Kind(
        "city",
        ("{name} lives in {answer}.", "{name} has a new flat in {answer}."),
        ("Where does {name} live?", "In which city does {name} live?"),
        _words(
            "Athens Bergen Berlin Boston Cairo Dakar Dallas Denver Dublin Geneva Hanoi Lagos Lima "
            "Lisbon Madrid Miami Milan Moscow Nairobi Oslo Paris Perth Porto Prague Quito Rome "
            "Seattle Seoul Sydney Tokyo Tunis Turku Vienna Warsaw Zurich"
        ),
    ),
    Kind(
        "job",
        ("{name} works as a {answer}.", "My cousin {name} is a {answer}."),
        ("What does {name} work as?", "What is the job of {name}?"),
        _words(
            "baker banker barber chef dentist driver farmer gardener judge lawyer nurse painter "
            "pilot plumber sailor singer tailor teacher writer"
        ),
    ),
    Kind(
        "pet",
        ("The {thing} of {name} is named {answer}.", "{name} has a {thing} called {answer}."),
        ("What is the name of the {thing} of {name}?", "What is {name}'s {thing} called?"),
        _words(
            "Bella Biscuit Buddy Coco Daisy Ginger Luna Max Misty Nemo Oscar Pepper Rocky Ruby "
            "Simba Tiger Toby Willow"
        ),
        _words("cat dog duck goldfish hamster horse parrot pony rabbit turtle"),
    ),
    Kind(
        "place",
        (
            "I put the {thing} of {name} in the {answer}.",
            "The {thing} of {name} is in the {answer}.",
        ),
        ("Where is the {thing} of {name}?", "Where did I put the {thing} of {name}?"),
        _words(
            "attic balcony barn basement bathroom bedroom cellar closet garden hallway kitchen "
            "library office"
        ),
        _words(
            "camera charger hat letter map notebook passport ring scarf ticket umbrella wallet "
            "watch"
        ),
    ),
    Kind(
        "month",
        ("The birthday of {name} is in {answer}.", "{name} was born in {answer}."),
        ("When is the birthday of {name}?", "In which month was {name} born?"),
        _words(
            "January February March April May June July August September October November December"
        ),
    ),
    Kind(
        "day",
        (
            "The {thing} with {name} is on {answer}.",
            "I will see {name} at the {thing} on {answer}.",
        ),
        ("On which day is the {thing} with {name}?", "When is the {thing} with {name}?"),
        _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
        _words(
            "concert dinner exam flight interview lesson meeting party picnic race trip wedding"
        ),
    ),
    Kind(
        "instrument",
        ("{name} plays the {answer} very well.", "{name} is learning the {answer}."),
        ("Which instrument does {name} play?",),
        _words("banjo cello drums flute guitar harp organ piano trumpet violin"),
    ),
    Kind(
        "language",
        ("{name} speaks {answer} at home.", "{name} is studying {answer}."),
        ("Which language does {name} speak?",),
        _words(
            "Arabic Chinese Danish Dutch French German Greek Hindi Korean Polish Spanish Turkish"
        ),
    ),
    Kind(
        "food",
        ("{name} loves to eat {answer}.", "The favorite food of {name} is {answer}."),
        ("What is the favorite food of {name}?", "What does {name} love to eat?"),
        _words(
            "apples bread carrots cheese chocolate curry grapes honey mushrooms noodles olives "
            "pancakes pasta pears pizza rice salad soup sushi tacos"
        ),
    ),
)
"""What the reference model answers about 97 % of the time from a plain window."""


def make_facts(n: int, seed: int = 0) -> list[Fact]:
    """Make `n` facts; no two questions are alike, and up to `len(NAMES)` share no person.

    Args:
        n: how many, at most `len(NAMES) * len(KINDS)`.
        seed: the same seed gives the same facts.

    Raises:
        ValueError: `n` is negative or larger than there are people and kinds.
    """
    most = len(NAMES) * len(KINDS)
    if not 0 <= n <= most:
        message = f"n={n} facts cannot be made; ask for 0 to {most}"
        raise ValueError(message)
    rng = random.Random(seed)
    people = rng.sample(NAMES, len(NAMES))
    first = rng.randrange(len(KINDS))
    # Whoever comes around again gets another kind: no divisor of the people divides the kinds.
    return [_tell(KINDS[(first + i) % len(KINDS)], people[i % len(people)], rng) for i in range(n)]


def _tell(kind: Kind, person: str, rng: random.Random) -> Fact:
    words = {"name": person, "thing": rng.choice(kind.things), "answer": rng.choice(kind.answers)}
    return Fact(
        kind=kind.name,
        person=person,
        text=rng.choice(kind.statements).format(**words),
        question=rng.choice(kind.questions).format(**words),
        answers=(words["answer"],),
    )


def is_correct(answer: str, fact: Fact) -> bool:
    """Tell whether the first sentence of an answer holds an accepted word, whole, in any case."""
    first = re.split(r"(?<=[.!?])\s|\n", answer.strip(), maxsplit=1)[0]
    return any(
        re.search(rf"(?<!\w){re.escape(word)}(?!\w)", first, re.IGNORECASE) for word in fact.answers
    )
