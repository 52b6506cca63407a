"""The plural of an English noun and the singular of a plural, as far as spelling tells.

Rules and two short tables, no library: `inflect` asks to be told whether a word is a plural and makes
`bu` of bus, `ga` of gas, `len` of lens and `me` of us, which a word list holds by the hundred.
"""

from __future__ import annotations

import re

# also at the end of a longer word: firemen, werewolves, horseshoes
_ENDINGS = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "teeth": "tooth",
    "wolves": "wolf",
    "knives": "knife",
    "wives": "wife",
    "leaves": "leaf",
    "loaves": "loaf",
    "shelves": "shelf",
    "thieves": "thief",
    "scarves": "scarf",
    "hooves": "hoof",
    "halves": "half",
    "calves": "calf",
    "dwarves": "dwarf",
    "shoes": "shoe",
}
# whole words alone; of two plurals the first is the one that is made
_WORDS = {
    "oxen": "ox",
    "dice": "die",
    "lice": "louse",
    "elves": "elf",
    "lives": "life",
    "selves": "self",
    "sheaves": "sheaf",
    "cacti": "cactus",
    "fungi": "fungus",
    "octopuses": "octopus",
    "octopi": "octopus",
    "oases": "oasis",
    "quizzes": "quiz",
    "toes": "toe",
    "hoes": "hoe",
    "foes": "foe",
    "does": "doe",
    "oboes": "oboe",
    "canoes": "canoe",
    "aloes": "aloe",
    "tiptoes": "tiptoe",
    "mistletoes": "mistletoe",
    "cookies": "cookie",
    "movies": "movie",
    "zombies": "zombie",
    "brownies": "brownie",
    "smoothies": "smoothie",
    "hoodies": "hoodie",
    "selfies": "selfie",
    "genies": "genie",
}
_NO_PLURAL_IN_MEN = re.compile(
    "omen|women|ramen|abdomen|specimen|regimen|stamen|semen|lumen|rumen|acumen|bitumen|cyclamen|amen|"
    "yemen|carmen|hymen|albumen|dolmen"
)
_REGULAR = re.compile("human|german|roman|norman|shaman|talisman|ottoman|caiman|mongoose")
# ends in s, and is no plural
_ALONE = re.compile(
    "lens|gas|atlas|canvas|bias|alias|christmas|pancreas|pampas|madras|texas|kansas|arkansas|dallas|"
    "vegas|thomas|lucas|nicholas|judas|douglas|chaos|cosmos|thermos|rhinoceros|asbestos|ethos|pathos|"
    "eros|kudos|news|mars|james|charles|wales|hades|hercules|mercedes|andes|rabies|diabetes|series|"
    "species|always|perhaps|shorts|whereas|iris|mantis"
)
# other words in -us and -is are no plural
_IN_US_OR_IS = re.compile(
    "menus|emus|gnus|gurus|tutus|haikus|plateaus|bureaus|chateaus|taxis|skis|kiwis|bikinis|safaris|"
    "tsunamis|salamis|zucchinis|paninis|martinis|emojis|rabbis|yetis|alibis|chilis"
)
_IN_OES = re.compile(
    "tomato|potato|hero|echo|mango|mosquito|volcano|tornado|torpedo|domino|buffalo|cargo"
)


def singular(word: str) -> str:
    """A lower-case word without the ending of its plural; any other word as it is."""
    if word in _WORDS:
        return _WORDS[word]
    for many, one in _ENDINGS.items():
        if word.endswith(many) and (word == many or not _NO_PLURAL_IN_MEN.fullmatch(word)):
            return word.removesuffix(many) + one
    if not word.endswith("s") or len(word) < 4 or _ALONE.fullmatch(word):
        return word
    if word.endswith(("ss", "us", "is")) and not _IN_US_OR_IS.fullmatch(word):
        return word
    stem = word.removesuffix("es")
    if word.endswith(("sses", "zzes", "shes", "ches", "xes", "oes")) or _ALONE.fullmatch(stem):
        return stem
    if word.endswith("uses") and not word.endswith("ouses") and len(word) > 4:
        return stem
    return f"{word[:-3]}y" if word.endswith("ies") and len(word) > 4 else word[:-1]


def plural(word: str) -> str:
    """The plural of a singular noun: churches, wolves, firemen."""
    for many, one in _WORDS.items():
        if word == one:
            return many
    for many, one in _ENDINGS.items():
        if word.endswith(one) and not _REGULAR.fullmatch(word):
            return word.removesuffix(one) + many
    if _IN_OES.fullmatch(word) or word.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in ("", *"aeiou"):
        return f"{word[:-1]}ies"
    return f"{word}s"


def number_key(word: str) -> str:
    """One text for a word and its plural, which need not be a word: `hors` for horse and horses.

    Spelling cannot tell whether the e of -ses, -xes, -zes, -ches is the word's own (horses, buses), nor
    whether -ies was -y or -ie, so after the singular both are written as one.
    """
    one = singular(word)
    if one.endswith(("xe", "ze", "che", "she")) or (one.endswith("se") and len(one) > 3):
        return one[:-1]
    return f"{one[:-2]}y" if one.endswith("ie") and len(one) > 3 else one
