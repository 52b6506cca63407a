"""Names as text: two spellings of one, the other number, an article, a place in a template, a slug."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from editforge.ground.plurals import number_key, plural, singular

# What a slug may lose unsaid: these stand between words, and two names that differ in them are one.
_QUIET = re.compile(r"[A-Za-z0-9 '._-]*")
_LINKS = ("of", "in", "on", "with", "at", "for")
# what people write around a name to ask for its style
_BEFORE = re.compile(r"^(in )?(the )?(style|manner|art|artwork|work|painting|drawing)s? (of|by) ")
_AFTER = re.compile(r"( s)?( (art|artistic|painting|drawing))?( style| s)$")
CONTAINED = "one contains the other"


def fold(text: str) -> str:
    """A name without case, punctuation and a leading article: two that fold alike are one."""
    words = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


@lru_cache(maxsize=65_536)
def name_key(name: str) -> str:
    """One text for a name in all its spellings: folded, and of one number."""
    return " ".join(number_key(part) for part in fold(name).split())


def same_words(word: str, name: str) -> str:
    """Why two names are one by spelling alone, or an empty text."""
    short, long = sorted((name_key(text).split() for text in (word, name)), key=len)
    if short == long:
        return "same word"
    spans = [long[i : i + len(short)] for i in range(len(long) - len(short) + 1)]
    return CONTAINED if short and short in spans else ""


def names_the_same(word: str, name: str) -> str:
    """Why two names may be of one thing or person, or an empty text; never misses `same_words`.

    Beyond these: accents, what asks for a style (`Picasso's style`), and a last name that both have
    with given names of which one lacks or shortens some (`P. Picasso`, `Pablo Ruiz Picasso`).

    Known failure: another name of the same person (`Cassius Clay`), which is for an alias to say.
    """
    if found := same_words(word, name):
        return found
    one, other = _bare(word), _bare(name)
    if found := same_words(" ".join(one), " ".join(other)):
        return found
    (*short, a), (*long, b) = sorted((one, other), key=len)
    given = iter(long)  # what a search has passed is gone: the order counts
    return "the same last name" if a == b and all(_in(part, given) for part in short) else ""


def _in(part: str, given: Iterator[str]) -> bool:
    return any(
        part == full or (1 in (len(part), len(full)) and part[0] == full[0]) for full in given
    )


@lru_cache(maxsize=8192)
def _bare(text: str) -> tuple[str, ...]:
    """The words of a name without accents and without what asks for its style."""
    plain = unicodedata.normalize("NFKD", text)
    folded = fold("".join(c for c in plain if not unicodedata.combining(c)))
    bare = _AFTER.sub("", _BEFORE.sub("", folded))
    return tuple((bare or folded or text).split())


def other_number(name: str) -> str:
    """A singular name in the plural and a plural name in the singular, each as English spells it.

    What changes is the noun before the first `of`, `in`, `on`, `with`, `at` or `for`, or the last word:
    `ears of corn`.
    """
    words = name.split()
    head = next((at for at, word in enumerate(words) if word in _LINKS and at), len(words)) - 1
    noun = words[head]
    one = singular(noun)
    words[head] = one if one != noun else plural(noun)
    return " ".join(words)


def with_article(name: str) -> str:
    """`an eye`, `a violin`; a name that has an article keeps it."""
    first = name.split()[0].casefold()
    if first in ("a", "an", "the"):
        return name
    return f"{'an' if first[0] in 'aeiou' else 'a'} {name}"


def filled(template: str, name: str) -> str:
    """A template with a name for {n}, or with its article for {a}; no name, no text."""
    if not name:
        return ""
    return template.replace("{a}", with_article(name)).replace("{n}", name)


def slug(text: str, limit: int = 60) -> str:
    """A name as part of a file's or a repository's name: a-z, 0-9, single hyphens inside.

    Guarantee: two names have two slugs, whatever their script, unless they differ in case, white space,
    `'`, `.`, `_` and `-` alone. A name that loses more, or is cut, ends in eight digits of its own hash:
    `violin`, `rubik-s-cube`, but `c-4f1a09` for C++. Empty for an empty name.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    whole = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if (_QUIET.fullmatch(text) and whole) or not text:
        return shortened(whole, limit, text)
    return f"{whole[: limit - 9].strip('-') or 'name'}-{_mark(text)}"


def shortened(stem: str, limit: int, name: str) -> str:
    """A slug of at most `limit` characters; one that is cut ends in eight digits of `name`'s hash."""
    return stem if len(stem) <= limit else f"{stem[: limit - 9].strip('-')}-{_mark(name)}"


def _mark(text: str) -> str:
    # one mark for both encodings of an accent, as the tokenizers read them
    return hashlib.sha256(unicodedata.normalize("NFC", text).casefold().encode()).hexdigest()[:8]
