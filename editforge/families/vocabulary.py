"""Words a model knows, with the state of each: the family's own lists, the tokenizer's, or a file.

Encoding 1,500 words takes half a minute on a CPU, 50,000 many, and never changes, so long lists are kept
in the user's cache folder under a hash of the words and of what decides a state
(`TextEncoder.digest`), and not in memory: their states take hundreds of megabytes that a later stage
needs. A damaged cache is written anew. Short lists are kept by the encoder; see
`TextEncoder.encode_words`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from editforge import emoji
from editforge.families.by_kind import KINDS, section_of, words_by_kind
from editforge.families.encode import TextEncoder
from editforge.families.model import TextModel
from editforge.families.schema import Family
from editforge.ground.disk import sha256_json
from editforge.ground.errors import PackageError, RecipeError
from editforge.ground.files import read_tensors, write_safetensors
from editforge.ground.names import fold, name_key, names_the_same
from editforge.ground.team import Team

_CACHED_FROM = 1_500  # words; shorter lists encode in seconds


@dataclass(frozen=True)
class Vocabulary:
    """`words` (V of them) and `vectors` (V, d) float32: the last token's state of each bare word."""

    words: tuple[str, ...]
    vectors: Tensor


def load_vocabulary(
    model: TextModel,
    source: str,
    progress: Any = None,
    team: Team | None = None,
    *,
    kinds: Iterable[str] = KINDS,
) -> Vocabulary:
    """Encode a word list.

    Args:
        model: whose text encoder reads the words.
        source: `family` (its own lists, else the tokenizer's whole words), `tokenizer`, or a text
            file with one word or phrase a line.
        progress: makes a bar from (total, label), see `Context.bar`.
        team: processes that all call this and share the encoding of a long list.
        kinds: of the lists by kind; all of them stand for what pictures show at large.

    Raises:
        RecipeError: no such file, or an empty list.
    """
    words, encoder = word_list(model, source, kinds), model.encoder
    path = None
    if len(words) >= _CACHED_FROM:
        path = cache_folder() / f"{sha256_json([encoder.digest, words])}.safetensors"
    team = team if team and path else Team()
    kept = encoder.kept(words)
    kept = recall(path, "vectors") if kept is None and path else kept
    known = team.tell(kept is not None)  # whether process 0 has it decides for all: they go one way
    if known and kept is not None:
        return Vocabulary(words, kept)
    shared = Team() if known else team
    bar = progress(len(words), "encoding words") if progress else None
    vectors = encoder.encode_words(words, progress=bar, team=shared)
    if bar is not None:
        bar.close()
    if path:
        try:
            write_safetensors(path, {"vectors": vectors}, {})
        except OSError:  # a cache that cannot be written costs memory, never the run
            encoder.keep(words, vectors)
    return Vocabulary(words, vectors)


def word_list(model: TextModel, source: str, kinds: Iterable[str] = KINDS) -> tuple[str, ...]:
    """The words of `source` for a model that is open; see `words_of`."""
    return words_of(model.family, model.encoder, source, kinds)


def words_of(
    family: Family, reader: TextEncoder, source: str, kinds: Iterable[str] = KINDS
) -> tuple[str, ...]:
    """The words of `source`, each once, in a fixed order, those that tokenize to something.

    Guarantee: no list of the embedded model's own holds a name of RETAIN-60, in any spelling. Those
    names score what an eraser has left alone, so it must not have seen them. What the user lists is
    the user's.
    """
    curated = family.words == "emoji"
    if source == "family" and curated:
        return emoji.words()
    if source == "family" and family.words == "kinds":
        return reader.readable(words_by_kind(kinds))
    if source in ("family", "tokenizer"):
        withheld = (
            {name_key(name) for name in emoji.manifest().splits["retain60"]} if curated else ()
        )
        return tuple(w for w in reader.vocabulary() if name_key(w) not in withheld)
    words = reader.readable(tuple(_lines(source)))
    if not words:
        raise RecipeError("the word list is empty", got=source)
    return words


class _OfKind(Protocol):
    @property
    def kind(self) -> str: ...


K = TypeVar("K", bound=_OfKind)


def compared_alike(
    family: Family, source: str, concepts: Iterable[K]
) -> dict[tuple[str, ...], list[K]]:
    """Kinds of lists to the concepts compared with their words: their own, where lists have kinds."""
    found: dict[tuple[str, ...], list[K]] = {}
    for concept in concepts:
        own = source == "family" and family.words == "kinds"
        found.setdefault((concept.kind,) if own else KINDS, []).append(concept)
    return found


def unnamed(family: Family, words: Sequence[str], erased: Sequence[str]) -> list[str]:
    """Words that name none of the erased, so that a solve or a training may hold them.

    The embedded model's list has one name a thing: there only a name in the same spelling is out, and
    `fire` is held against erasing `fire engine`. Elsewhere `Vincent van Gogh` names `Van Gogh`.
    """
    gone = {fold(name) for name in erased}
    left = [word for word in words if fold(word) not in gone]
    if family.words == "emoji":
        return left
    return [word for word in left if not any(names_the_same(word, name) for name in erased)]


def group_of(family: Family, word: str) -> str | None:
    """The group that a curated list puts a name or an alias in (`objects`); None: it does not say."""
    found = emoji.manifest().find(word) if family.words == "emoji" else None
    return found.group if found else None


def apart(family: Family, word: str, other: str, kind: str = "object") -> int:
    """How far the family's list puts two names: 0 one subgroup, 1 one group, 2 neither, or not listed.

    Of a list by kind, a section is a subgroup; its group is what its heading has before a colon.
    """
    if family.words == "kinds":
        one, two = section_of(kind, word), section_of(kind, other)
        if one is None or two is None or one.partition(":")[0] != two.partition(":")[0]:
            return 2
        return int(one != two)
    if family.words != "emoji":
        return 2
    a, b = (emoji.manifest().find(name) for name in (word, other))
    if a is None or b is None or a.group != b.group:
        return 2
    return int(a.subgroup != b.subgroup)


def check_words(source: str | None) -> None:
    """Refuse a word list that is not there or has no word, before a model is opened.

    Raises:
        RecipeError: no such file, or an empty one.
    """
    if source not in (None, "family", "tokenizer") and not _lines(source):
        raise RecipeError("the word list is empty", got=source)


def _lines(source: str) -> list[str]:
    path = Path(source).expanduser()
    try:
        lines = [
            " ".join(line.split()) for line in path.read_text(encoding="utf-8-sig").splitlines()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            "no such word list",
            got=f"{source}: {getattr(error, 'strerror', None) or error}",
            allowed="family, tokenizer, or a UTF-8 text file with one word a line",
        ) from None
    return [line for line in dict.fromkeys(lines) if line and not line.startswith("#")]


def thinned(words: Sequence[str], limit: int) -> list[str]:
    """At most `limit` words, evenly spaced, so that frequent and rare ones stay represented."""
    limit = max(limit, 0)
    if len(words) <= limit:
        return list(words)
    return [words[at * len(words) // limit] for at in range(limit)]


def recall(path: Path, name: str) -> Tensor | None:
    """A tensor of a file in the cache; None if it is not there, or was damaged and is gone now."""
    if not path.is_file():
        return None
    try:
        return read_tensors(path, [name])[name]
    except PackageError:
        path.unlink(missing_ok=True)
        return None


def cache_folder() -> Path:
    """Where words that are slow to encode are kept between runs."""
    return cache_root() / "words"


def cache_root() -> Path:
    """The user's folder for what is slow to compute and never changes; it may be deleted."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "editforge"
