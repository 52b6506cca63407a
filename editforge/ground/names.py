"""English names as text: two spellings of one, the singular, an article, a place in a template."""

from __future__ import annotations


def fold(text: str) -> str:
    """A name without case, punctuation and a leading article: two that fold alike are one."""
    words = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


def name_key(name: str) -> str:
    """One text for a name in all its spellings: folded, each word in the singular."""
    return " ".join(singular(part) for part in fold(name).split())


def singular(word: str) -> str:
    """An English word without the ending of its plural, as far as spelling tells."""
    for ending, replacement in (("ies", "y"), ("ses", "s"), ("xes", "x"), ("ches", "ch")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word.removesuffix(ending) + replacement
    plural = word.endswith("s") and not word.endswith(("ss", "us")) and len(word) > 3
    return word[:-1] if plural else word


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
