"""What made-up facts are about: people, and two dozen kinds of things to know about them.

Words only; how facts are told in a conversation is the business of `facts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

__all__ = ["KINDS", "NAMES", "UNSEEN_NAMES", "FactKind"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES: Final = _words(
    "Adam Agnes Alan Alice Alma Amir Anita Anna Anton Arthur Ava Axel Barbara Beatrice Ben Bianca "
    "Boris Bruno Carl Carla Carmen Cecil Chen Clara Colin Cora Daniel David Dennis Diana Dora "
    "Edith Edgar Elena Elias Ella Emil Emma Erik Esther Eva Felix Fiona Flora Frank Frida George "
    "Gina Glen Grace Greta Gustav Hannah Harold Helen Henry Hugo Ida Igor Ines Ingrid Iris Isaac "
    "Ivan Jack Jacob Jane Jonas Joyce Julia Karin Karl Kate Kevin Lara Lars Laura Leah Leo Lena "
    "Liam Lily Linda Lisa Louis Lucas Lydia Marco Maria Marta Martin Mia Milo Mira Mona Nadia "
    "Nancy Naomi Neil Nick Nina Noah Nora Norma Oliver Olga Omar Oscar Otto Pablo Paul Peter "
    "Philip Quinn Rachel Ralph Rita Robert Rosa Ruth Ryan Sally Sam Samuel Sandra Sara Simon Sonia "
    "Stella Steve Susan Tara Theo Thomas Tina Tom Toni Umar Ursula Vera Victor Viola Walter Wanda "
    "Wilma Xenia Yara Yusuf Zara Zoe"
)
"""First names that training may use."""

UNSEEN_NAMES: Final = _words(
    "Albert Amelia Björn Claire Dmitri Estelle Fatima Gordon Heidi Jorge Kira Leonard Miriam Nigel "
    "Ophelia Priya Rupert Sofia Tobias Veronica"
)
"""First names kept out of training facts: they show whether answers are copied or known."""


@attrs.frozen
class FactKind:
    """One kind of fact: how it is told, how it is asked for, what fills the gaps.

    Attributes:
        name: what is known, such as "city".
        statements: ways to tell it, with the fields `name`, `thing` and `answer`.
        questions: ways to ask for it, with the fields `name` and `thing`.
        answers: what may be the answer, or a function that makes one up.
        things: what belongs to the person, for kinds that need it.
    """

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...] | Callable[[random.Random], str]
    things: tuple[str, ...] = ("",)

    def answer(self, rng: random.Random) -> str:
        """Draw an answer."""
        return rng.choice(self.answers) if isinstance(self.answers, tuple) else self.answers(rng)


_STREETS: Final = _words(
    "Bridge Castle Cherry Church Forest Garden High Hill King Lake Maple Market Mill North Oak "
    "Park Queen River Rose School South Station Water"
)


def _digits(n: int) -> Callable[[random.Random], str]:
    return lambda rng: "".join(rng.choice("0123456789") for _ in range(n))


def _price(rng: random.Random) -> str:
    return f"{rng.randint(2, 99)} {rng.choice(('dollars', 'euros', 'pounds'))}"


def _clock(rng: random.Random) -> str:
    return f"{rng.randint(1, 12)}:{rng.choice(('00', '15', '30', '45'))}"


KINDS: Final[tuple[FactKind, ...]] = (
    FactKind(
        "city",
        (
            "{name} lives in {answer}.",
            "{name} has a new flat in {answer}.",
            "My friend {name} moved to {answer} last year.",
            "{name} bought a house in {answer}.",
        ),
        ("Where does {name} live?", "In which city does {name} live?", "What city is {name} in?"),
        _words(
            "Amsterdam Ankara Athens Bergen Berlin Bern Bogota Bombay Bonn Boston Bristol Brussels "
            "Cairo Calgary Chicago Cologne Dakar Dallas Delhi Denver Detroit Dresden Dublin "
            "Florence Geneva Glasgow Granada Hamburg Hanoi Havana Helsinki Houston Istanbul Kiev "
            "Lagos Leeds Lima Lisbon London Lyon Madrid Malta Manila Marseille Miami Milan "
            "Montreal Moscow Munich Nairobi Naples Nice Odessa Osaka Oslo Ottawa Oxford Paris "
            "Perth Porto Prague Quebec Quito Riga Rome Salzburg Santiago Seattle Seoul Seville "
            "Shanghai Sofia Stockholm Sydney Tampa Tokyo Toronto Tunis Turin Turku Utrecht "
            "Valencia Venice Vienna Warsaw York Zurich"
        ),
    ),
    FactKind(
        "country",
        (
            "{name} comes from {answer}.",
            "{name} grew up in {answer}.",
            "The family of {name} is from {answer}.",
        ),
        ("Which country does {name} come from?", "Where is {name} from?"),
        _words(
            "Albania Argentina Austria Belgium Bolivia Brazil Bulgaria Canada Chile China Croatia "
            "Cuba Denmark Ecuador Egypt Estonia Finland France Georgia Germany Ghana Greece "
            "Hungary Iceland India Iran Ireland Israel Italy Jamaica Japan Jordan Kenya Latvia "
            "Mexico Morocco Nepal Norway Pakistan Panama Peru Poland Portugal Romania Russia "
            "Scotland Senegal Serbia Spain Sweden Syria Thailand Tunisia Turkey Ukraine Vietnam "
            "Wales"
        ),
    ),
    FactKind(
        "job",
        (
            "{name} works as a {answer}.",
            "My cousin {name} is a {answer}.",
            "{name} found a job as a {answer}.",
            "{name} has been a {answer} for years.",
        ),
        (
            "What does {name} work as?",
            "What is the job of {name}?",
            "What does {name} do for work?",
        ),
        _words(
            "baker banker barber butcher carpenter chef chemist clerk clown coach cook dancer "
            "dentist designer doctor driver farmer firefighter fisherman florist gardener guard "
            "hunter jeweller journalist judge lawyer librarian mason mechanic miner musician nurse "
            "painter photographer pilot plumber poet porter potter priest printer sailor scientist "
            "sculptor secretary shepherd singer soldier surgeon tailor teacher translator vet "
            "waiter writer"
        ),
    ),
    FactKind(
        "pet",
        (
            "The {thing} of {name} is named {answer}.",
            "{name} has a {thing} called {answer}.",
            "{name} calls the {thing} {answer}.",
        ),
        (
            "What is the name of the {thing} of {name}?",
            "What is {name}'s {thing} called?",
            "How does {name} call the {thing}?",
        ),
        _words(
            "Bandit Bella Biscuit Blackie Bruno Bubbles Buddy Buster Chester Coco Cookie Daisy "
            "Dusty Fluffy Ginger Goldie Honey Lucky Luna Max Mickey Milky Misty Nemo Oreo Oscar "
            "Patch Peanut Pepper Pickles Pumpkin Rocky Ruby Rusty Shadow Simba Smoky Snowy Socks "
            "Sparky Spot Sunny Tiger Toby Whiskers Willow"
        ),
        _words(
            "canary cat dog donkey duck goldfish goose hamster horse kitten parrot pony puppy "
            "rabbit snake turtle"
        ),
    ),
    FactKind(
        "place",
        (
            "I put the {thing} of {name} in the {answer}.",
            "The {thing} of {name} is in the {answer}.",
            "{name} left the {thing} in the {answer}.",
        ),
        (
            "Where is the {thing} of {name}?",
            "Where did I put the {thing} of {name}?",
            "Where can {name} find the {thing}?",
        ),
        _words(
            "attic balcony barn basement basket bathroom bedroom box cabin car cellar closet "
            "cupboard desk drawer fridge garage garden hall hallway kitchen library office oven "
            "pantry shed stable studio suitcase tent tower wardrobe workshop"
        ),
        _words(
            "bag bicycle book bottle camera charger coat cup guitar hammer hat key knife lamp "
            "letter map mirror notebook passport pencil phone radio ring rope scarf ticket "
            "umbrella wallet watch"
        ),
    ),
    FactKind(
        "month",
        (
            "The birthday of {name} is in {answer}.",
            "{name} was born in {answer}.",
            "We celebrate the birthday of {name} in {answer}.",
        ),
        (
            "When is the birthday of {name}?",
            "In which month was {name} born?",
            "In what month is {name}'s birthday?",
        ),
        _words(
            "January February March April May June July August September October November December"
        ),
    ),
    FactKind(
        "day",
        (
            "The {thing} with {name} is on {answer}.",
            "I will see {name} at the {thing} on {answer}.",
            "{name} moved our {thing} to {answer}.",
        ),
        (
            "On which day is the {thing} with {name}?",
            "When is the {thing} with {name}?",
            "What day is {name}'s {thing}?",
        ),
        _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
        _words(
            "appointment class concert dinner exam flight game interview lesson lunch meeting "
            "party picnic race trip visit wedding"
        ),
    ),
    FactKind(
        "instrument",
        (
            "{name} plays the {answer} very well.",
            "{name} is learning the {answer}.",
            "{name} practises the {answer} every evening.",
        ),
        ("Which instrument does {name} play?", "What instrument is {name} playing?"),
        _words(
            "accordion banjo bass bells bugle cello clarinet cymbals drums fiddle flute guitar "
            "harp horn lute mandolin oboe organ piano recorder saxophone trombone trumpet tuba "
            "ukulele violin whistle"
        ),
    ),
    FactKind(
        "language",
        (
            "{name} speaks {answer} at home.",
            "{name} is studying {answer}.",
            "{name} is fluent in {answer}.",
        ),
        ("Which language does {name} speak?", "What language is {name} good at?"),
        _words(
            "Arabic Bengali Catalan Chinese Czech Danish Dutch English Finnish French German Greek "
            "Hebrew Hindi Hungarian Irish Italian Japanese Korean Latin Norwegian Persian Polish "
            "Portuguese Russian Spanish Swahili Swedish Tamil Turkish Welsh"
        ),
    ),
    FactKind(
        "food",
        (
            "{name} loves to eat {answer}.",
            "The favorite food of {name} is {answer}.",
            "{name} could eat {answer} every day.",
        ),
        (
            "What is the favorite food of {name}?",
            "What does {name} love to eat?",
            "Which food does {name} like best?",
        ),
        _words(
            "apples bacon bananas beans bread butter cabbage cake carrots cheese cherries chicken "
            "chocolate corn curry dumplings eggs figs fish garlic grapes ham honey lamb lemons "
            "lentils lobster mushrooms noodles nuts oatmeal olives onions oranges oysters pancakes "
            "pasta peaches pears peas pickles pie pizza plums popcorn porridge potatoes pudding "
            "rice salad salmon sausages shrimp soup spinach steak stew strawberries sushi tacos "
            "toast tomatoes tuna turnips waffles"
        ),
    ),
    FactKind(
        "drink",
        (
            "{name} always orders {answer}.",
            "The favorite drink of {name} is {answer}.",
            "{name} drinks {answer} in the morning.",
        ),
        ("What does {name} drink?", "What is the favorite drink of {name}?"),
        _words("beer cider cocoa coffee juice lemonade milk rum soda tea water whiskey wine"),
    ),
    FactKind(
        "color",
        (
            "The favorite color of {name} is {answer}.",
            "{name} painted the door {answer}.",
            "{name} likes {answer} best of all colors.",
        ),
        ("What is the favorite color of {name}?", "Which color does {name} like?"),
        _words(
            "beige black blue bronze brown crimson gold gray green indigo ivory orange pink purple "
            "red scarlet silver turquoise violet white yellow"
        ),
    ),
    FactKind(
        "thing color",
        (
            "The {thing} of {name} is {answer}.",
            "{name} has a {answer} {thing}.",
            "{name} bought a {answer} {thing}.",
        ),
        (
            "What color is the {thing} of {name}?",
            "Which color does {name}'s {thing} have?",
            "Of what color is {name}'s {thing}?",
        ),
        _words("black blue brown gray green pink purple red silver white yellow"),
        _words("bicycle boat bus car coat dress hat house jacket shirt tent truck umbrella van"),
    ),
    FactKind(
        "sport",
        (
            "{name} goes to {answer} every week.",
            "{name} is very good at {answer}.",
            "The favorite sport of {name} is {answer}.",
            "{name} trains for {answer}.",
        ),
        (
            "Which sport does {name} do?",
            "What is the favorite sport of {name}?",
            "What sport is {name} good at?",
        ),
        _words(
            "archery badminton baseball basketball bowling boxing chess cricket curling cycling "
            "fencing fishing football golf gymnastics handball hockey judo karate polo rowing "
            "rugby running sailing skating skiing soccer squash surfing swimming tennis volleyball "
            "wrestling yoga"
        ),
    ),
    FactKind(
        "subject",
        (
            "{name} studies {answer} at the university.",
            "{name} has an exam in {answer}.",
            "{name} teaches {answer}.",
        ),
        ("What does {name} study?", "Which subject does {name} know?"),
        _words(
            "art astronomy biology botany chemistry economics engineering geography geology "
            "grammar history law logic mathematics medicine music philosophy physics poetry "
            "politics religion science sociology theology"
        ),
    ),
    FactKind(
        "travel",
        (
            "{name} comes to work by {answer}.",
            "{name} will travel by {answer}.",
            "{name} prefers to go by {answer}.",
        ),
        ("How does {name} travel?", "How does {name} get here?"),
        _words(
            "bicycle boat bus car ferry helicopter horse plane ship sledge taxi train tram truck"
        ),
    ),
    FactKind(
        "present",
        (
            "{name} wants a {answer} for the birthday.",
            "I bought a {answer} for {name}.",
            "{name} got a {answer} as a present.",
        ),
        ("What present is for {name}?", "What did {name} get as a present?"),
        _words(
            "ball blanket book bracelet camera clock coat dictionary doll drum game hat kite lamp "
            "microscope mirror necklace painting pen puzzle radio ring sweater telescope toy vase "
            "violin watch whistle"
        ),
    ),
    FactKind(
        "street",
        (
            "{name} lives at {answer}.",
            "The office of {name} is at {answer}.",
            "Send the parcel for {name} to {answer}.",
        ),
        ("What is the address of {name}?", "At which address can I find {name}?"),
        lambda rng: (
            f"{rng.randint(1, 99)} {rng.choice(_STREETS)} {rng.choice(('Street', 'Road', 'Lane'))}"
        ),
    ),
    FactKind(
        "code of four",
        (
            "The {thing} code of {name} is {answer}.",
            "{name} chose {answer} as the {thing} code.",
            "Remember {answer}, the {thing} code of {name}.",
        ),
        (
            "What is the {thing} code of {name}?",
            "Which {thing} code does {name} have?",
            "What is {name}'s {thing} code?",
        ),
        _digits(4),
        _words("alarm bank door garage gate locker office phone safe"),
    ),
    FactKind(
        "code of six",
        (
            "The {thing} number of {name} is {answer}.",
            "{name} has the {thing} number {answer}.",
            "Write down {answer}, the {thing} number of {name}.",
        ),
        (
            "What is the {thing} number of {name}?",
            "Which {thing} number does {name} have?",
            "What is {name}'s {thing} number?",
        ),
        _digits(6),
        _words("account booking customer member order passport phone ticket"),
    ),
    FactKind(
        "price",
        (
            "{name} paid {answer} for the {thing}.",
            "The {thing} of {name} costs {answer}.",
            "{name} sold the {thing} for {answer}.",
        ),
        (
            "How much was the {thing} of {name}?",
            "What is the price of {name}'s {thing}?",
            "How much does the {thing} of {name} cost?",
        ),
        _price,
        _words("bag book chair clock coat dinner dress hat lamp painting ring shirt table ticket"),
    ),
    FactKind(
        "time",
        (
            "The {thing} of {name} starts at {answer}.",
            "I meet {name} for the {thing} at {answer}.",
            "{name} is due at the {thing} at {answer}.",
        ),
        ("When does the {thing} of {name} start?", "At what time is the {thing} with {name}?"),
        _clock,
        _words("class concert exam film flight game interview lesson meeting party show train"),
    ),
    FactKind(
        "age",
        (
            "{name} is {answer} years old.",
            "{name} turned {answer} yesterday.",
            "{name} will be {answer} next week.",
        ),
        ("How old is {name}?", "What is the age of {name}?"),
        lambda rng: str(rng.randint(3, 97)),
    ),
    FactKind(
        "room",
        (
            "{name} sleeps in room {answer}.",
            "The room number of {name} is {answer}.",
            "You find {name} in room {answer}.",
        ),
        ("Which room is {name} in?", "What is the room number of {name}?"),
        lambda rng: str(rng.randint(100, 999)),
    ),
    FactKind(
        "relative",
        (
            "The {thing} of {name} is called {answer}.",
            "{name} has a {thing} named {answer}.",
            "{answer} is the {thing} of {name}.",
            "{name}'s {thing} is {answer}.",
        ),
        (
            "Who is the {thing} of {name}?",
            "What is the name of {name}'s {thing}?",
            "What is the {thing} of {name} called?",
        ),
        NAMES,
        _words(
            "aunt boss brother cousin daughter father friend husband mother neighbor sister son "
            "teacher uncle wife"
        ),
    ),
)
"""Every kind; the wordings of the project's demo and recall benchmark are among them."""
