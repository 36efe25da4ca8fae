"""Compose the demo's sentences from templates and word lists; nothing is downloaded.

Every sentence is a template with its slots filled at random, under a fixed seed. The three sets share words and
templates but no sentence, so what is tested is unheard word sequences, not unheard words.

    python examples/demo/sentences.py        prints a few sentences and the size of the vocabulary
"""

import random
import re

WORDS = {
    "name": "anna david george hannah jacob laura martin oliver peter rachel samuel victor",
    "person": "artist baker captain doctor driver farmer lawyer painter sailor singer teacher waiter",
    "animal": "camel chicken dolphin eagle elephant lizard monkey parrot rabbit spider tiger zebra",
    "thing": "basket blanket bottle candle carpet engine guitar hammer jacket ladder mirror needle pencil pillow "
    "saddle telescope ticket umbrella violin",
    "food": "apple banana biscuit carrot lemon melon mushroom onion pancake pepper pumpkin sausage",
    "place": "airport bakery castle desert factory forest garden harbor hospital island kitchen market museum station "
    "theater village",
    "adjective": "beautiful broken clever dirty empty friendly gentle heavy hungry lazy modern narrow purple silver "
    "wooden yellow",
    "verb": "borrowed carried cleaned discovered followed ignored measured noticed painted received repaired washed",
    "number": "two three five six seven nine eleven twelve twenty thirty",
    "day": "monday tuesday wednesday thursday friday saturday sunday",
    "month": "january february april july august october december",
    "time": "yesterday tonight tomorrow",
    "where": "behind beside inside under near",
    "how": "slowly carefully suddenly politely",
}

TEMPLATES = (
    "the {adjective} {animal} {verb} the {thing} {where} the {place}",
    "{name} {verb} {number} {thing}s {where} the {place}",
    "on {day} the {person} {how} {verb} a {adjective} {thing}",
    "please bring {number} {food}s and a {thing} to {name}",
    "{name} will visit the {adjective} {place} in {month}",
    "did the {person} say that the {animal} likes {food}s",
    "my {adjective} {animal} was sleeping {where} the {thing}",
    "turn left at the {place} and wait {where} the {place}",
    "{time} {name} {how} {verb} the {person}",
    "there are {number} {animal}s {where} the {adjective} {thing}",
    "call the {person} on {day} about the {food}s",
    "{name} sold the {adjective} {thing} for {number} dollars {time}",
)


def compose(rng):
    """One sentence: a template drawn evenly, each slot drawn evenly."""
    template = rng.choice(TEMPLATES)
    sentence = re.sub(r"{(\w+)}", lambda slot: rng.choice(WORDS[slot[1]].split()), template)
    return re.sub(r"\ba (?=[aeiou])", "an ", sentence)


def sentence_sets(train, validation, test, seed=7):
    """Three lists of `train`, `validation` and `test` sentences, no sentence twice in or across them."""
    rng = random.Random(seed)
    unique = {}  # a dict keeps the order of drawing, a set would not
    while len(unique) < train + validation + test:
        unique[compose(rng)] = None
    sentences = list(unique)
    return sentences[:train], sentences[train : train + validation], sentences[train + validation :]


if __name__ == "__main__":
    some, _, held_out = sentence_sets(4000, 64, 200)
    print("\n".join(held_out[:12]))
    print(len({word for s in some for word in s.split()}), "words;", sum(len(s.split()) for s in held_out), "held out")
