"""The demo corpus: 300,000 tokens of readable nonsense with known groups of related words.

It needs neither a corpus nor a network, and unlike a real corpus it can be scored: the words of each group in
``GROUPS`` occur in the same places of the same sentences, so after training the nearest neighbour of such a word should
be a word of its group. Otherwise it is like real text: function words are the most frequent, counts fall about as
1 / rank (Zipf's law), and there is a tail of names and numbers that occur once.

The text follows from ``demo_words.txt``, a small context-free grammar. Sentence i is a pure function of (seed, i) in
integer arithmetic, so the text is the same bytes on every machine.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import accumulate

import numpy as np

from pipeline.shared.randomness import Purpose, fold, stream

NUM_SENTENCES = 20_000
_MAX_CHOICES = 64  # random draws of one sentence; the longest take 30

# 58 planted groups of 4 to 7 words. A word of a group occurs in its places only, and in no other group.
GROUPS: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        # everywhere
        "weekday": "monday tuesday wednesday thursday friday saturday sunday",
        "season": "summer winter spring autumn",
        "number": "two three four five six seven",
        # finance
        "currency": "dollar yen franc peso ruble krona",
        "security": "stocks bonds futures debentures warrants annuities",
        "metal": "gold silver copper nickel zinc platinum",
        "lender": "bank brokerage insurer thrift underwriter",
        # cooking
        "vegetable": "onion carrot potato leek turnip parsnip",
        "spice": "pepper ginger cinnamon nutmeg saffron cumin",
        "dessert": "pudding tart trifle custard meringue crumble",
        "vessel": "pan saucepan skillet casserole wok cauldron",
        # sea
        "ship": "schooner trawler ferry frigate barge yacht",
        "fish": "herring cod mackerel salmon haddock pilchard",
        "crew": "captain bosun helmsman stoker purser",
        "ship_part": "mast rudder anchor keel bowsprit hull",
        # music
        "instrument": "violin cello flute oboe trumpet clarinet bassoon",
        "composition": "symphony sonata concerto waltz fugue overture",
        "voice": "soprano tenor baritone contralto mezzo",
        "dance": "tango polka foxtrot rumba minuet",
        # weather
        "precipitation": "rain snow sleet hail drizzle",
        "wind": "gale breeze squall gust typhoon",
        "cloud": "cirrus cumulus stratus nimbus",
        "weather_gauge": "barometer thermometer hygrometer anemometer",
        # medicine
        "doctor": "surgeon physician dentist midwife pediatrician oculist",
        "drug": "aspirin penicillin quinine insulin morphine codeine",
        "organ": "heart liver kidney lung spleen",
        "illness": "influenza measles bronchitis mumps pneumonia scurvy",
        # football
        "club": "united rovers wanderers albion rangers corinthians",
        "position": "goalkeeper striker winger defender midfielder sweeper",
        "competition": "cup league shield trophy",
        "strike": "header volley tackle backheel dribble",
        # farming
        "crop": "wheat barley oats rye maize clover",
        "livestock": "cow sheep pig goat mare goose",
        "farm_machine": "tractor plough harrow baler thresher",
        "fruit": "apples pears plums cherries quinces",
        # computers
        "chip": "chip microprocessor transistor coprocessor semiconductor",
        "language": "fortran cobol lisp pascal prolog",
        "program": "compiler spreadsheet debugger editor browser",
        "peripheral": "keyboard printer monitor mouse modem scanner",
        # travel
        "vehicle": "train bus tram taxi bicycle",
        "city": "paris london rome vienna lisbon prague",
        "lodging": "hotel inn hostel guesthouse motel",
        "luggage": "suitcase rucksack satchel hatbox valise",
        # law
        "crime": "theft fraud arson perjury forgery burglary",
        "lawyer": "judge barrister prosecutor magistrate solicitor",
        "legal_paper": "contract deed lease affidavit subpoena",
        # space
        "spacecraft": "rocket satellite probe shuttle capsule",
        "planet": "mars venus jupiter saturn mercury neptune",
        "celestial": "comet asteroid nebula pulsar quasar",
        "astronomer": "kepler galileo copernicus halley cassini",
        # home
        "family": "mother father aunt uncle sister brother",
        "clothing": "coat hat scarf shirt waistcoat",
        "colour": "red blue green yellow purple grey",
        "furniture": "chair sofa table wardrobe cupboard dresser",
        # garden
        "bird": "sparrow robin thrush wren heron",
        "tree": "oak elm beech willow",
        "flower": "tulip dahlia daffodil lily peony",
        "insect": "bee wasp gnat beetle moth",
    }.items()
}

_SLOT = re.compile(r"\{([^{}]*)\}")  # {rule}, {group} or {this|that}
_ARTICLE = re.compile(r"\ba (?=[aeiou])")

_Rules = dict[str, list[str]]  # name of a rule or group -> its alternatives, the commonest first


def demo_lines(seed: int = 0) -> Iterator[str]:
    """Yields 20,000 sentences of about 300,000 tokens, one a line, without line ends; the same text every time.

    Lower case, one space between tokens, no punctuation, 5 to 35 tokens a line; every thousandth line is a single word.
    Line i depends only on (seed, i). The whole text takes about a second.
    """
    subjects = _subjects()
    for index in range(NUM_SENTENCES):
        bits = iter(fold(stream(seed, Purpose.DEMO, index), np.arange(_MAX_CHOICES)).tolist())
        rules = subjects[_choose(bits, len(subjects))]
        root = "{remark}" if (index + 1) % 1000 == 0 else "{sentence}"
        yield _ARTICLE.sub("an ", _expand(root, rules, bits))


def _expand(text: str, rules: _Rules, bits: Iterator[int]) -> str:
    """``text`` with its slots filled; each slot takes the next of ``bits``. Slots of one group get different words."""
    taken = set()

    def fill(slot: re.Match[str]) -> str:
        alternatives = rules[slot[1]] if "|" not in slot[1] else slot[1].split("|")
        index = _choose(bits, len(alternatives))
        if slot[1] not in GROUPS:
            return _expand(alternatives[index], rules, bits)
        while alternatives[index] in taken:
            index = (index + 1) % len(alternatives)
        taken.add(alternatives[index])
        return alternatives[index]

    return _SLOT.sub(fill, text)


def _choose(bits: Iterator[int], n: int) -> int:
    """A random index below ``n``; i has the weight 1 / (i + 3), in integer arithmetic."""
    bounds = _bounds(n)
    return bisect_right(bounds, (next(bits) >> 32) * bounds[-1] >> 32)


@cache
def _bounds(n: int) -> list[int]:
    """Cumulative weights: i is drawn by the integers from ``_bounds(n)[i - 1]`` to below ``_bounds(n)[i]``."""
    return list(accumulate((1 << 20) // (i + 3) for i in range(n)))


@cache
def _subjects() -> list[_Rules]:
    """The grammar of each subject, the most frequent first, from ``demo_words.txt``, which explains its format.

    Subjects share all rules except ``clause``.
    """
    rules: _Rules = {name: list(words) for name, words in GROUPS.items()}
    clauses: _Rules = {}
    subject = ""
    for line in (files("pipeline.text") / "demo_words.txt").read_text("utf-8").splitlines():
        if line.startswith("== "):
            subject = line.removeprefix("== ")
        elif ": " in line and not line.startswith("#"):
            name, alternatives = line.split(": ")
            rules[name] = alternatives.split(" | ")
        elif line and not line.startswith("#"):
            clauses.setdefault(subject, []).append(line)
    return [rules | {"clause": own} for own in clauses.values()]
