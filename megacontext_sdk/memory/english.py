"""English words that a search must treat specially: words without content, irregular forms.

Data only. Text in other languages is searched by its words as they stand: none of this applies, and
words that are in most messages are ignored by their frequency anyway.
"""

from __future__ import annotations

__all__ = ["IRREGULAR_FORMS", "STOP_WORDS"]

STOP_WORDS = frozenset(
    """
    a about am an and any are as at be been being but by can could d did do does doing for from had
    has have having he her hers him his how i if in into is it its just ll m me might mine my no not
    of on or our out re s she should so some t than that the their them then there these they this
    those to up us ve was we were what when where which who whom whose why will with would you your
    yours
    """.split()  # noqa: SIM905 - a list of quoted words is no easier to read
)
"""Words of questions and grammar: alone they point nowhere, and short histories hold them rarely
enough to look informative. The single letters are what an apostrophe leaves behind."""

IRREGULAR_FORMS = tuple(
    tuple(line.split())
    for line in """
    become became
    begin began begun
    break broke broken
    bring brought
    build built
    buy bought
    catch caught
    child children
    choose chose chosen
    come came
    deal dealt
    draw drew drawn
    drink drank drunk
    drive drove driven
    eat ate eaten
    fall fell fallen
    feed fed
    feel felt
    fight fought
    find found
    fly flew flown
    foot feet
    forget forgot forgotten
    get got gotten
    give gave given
    go goes went gone
    grow grew grown
    hang hung
    hear heard
    hide hid hidden
    hold held
    keep kept
    know knew known
    lead led
    leave left
    lend lent
    life lives
    lose lost
    make made
    man men
    mean meant
    meet met
    mouse mice
    pay paid
    person people
    ride rode ridden
    rise rose risen
    run ran
    say said
    see saw seen
    sell sold
    send sent
    shake shook shaken
    shoot shot
    show shown
    sing sang sung
    sit sat
    sleep slept
    speak spoke spoken
    spend spent
    stand stood
    steal stole stolen
    swim swam swum
    take took taken
    teach taught
    tear tore torn
    tell told
    think thought
    throw threw thrown
    tooth teeth
    understand understood
    wake woke woken
    wear wore worn
    wife wives
    win won
    woman women
    write wrote written
    """.strip().splitlines()
)
"""Forms of one word that stemming does not bring together."""
