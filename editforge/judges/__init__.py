"""Judges: frozen classifiers that label an image. A new one is a file here that fulfils `Judge`.

One with a short name has a line in `known.py`; one that learned elsewhere also fulfils `Foreign`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from editforge.emoji import manifest
from editforge.ground.errors import RecipeError, did_you_mean
from editforge.ground.names import with_article
from editforge.ground.places import is_hub_id
from editforge.judges.clip import check_clip
from editforge.judges.core import NONE as NONE
from editforge.judges.core import Foreign as Foreign
from editforge.judges.core import Judge as Judge
from editforge.judges.core import Judged as Judged
from editforge.judges.core import judge_images as judge_images
from editforge.judges.core import names_things as names_things
from editforge.judges.core import tells as tells
from editforge.judges.known import KNOWN as KNOWN
from editforge.judges.known import Labels, Wanted, clip_judge
from editforge.judges.known import named_for as named_for

FAMILY = "family"
ALLOWED = (
    f"family, none, {', '.join(KNOWN)}, a CLIP folder or Hub id (OWNER/NAME, OWNER/NAME@REVISION), "
    "or several with commas"
)


def load_judges(
    which: str | Path | Sequence[Judge] | None,
    family_name: str,
    labels: Sequence[str],
    *,
    erased: Sequence[tuple[str, Labels, str]] = (),
    kinds: Mapping[str, str] | None = None,
) -> tuple[Judge, ...]:
    """The judges a recipe asks for.

    Args:
        which: `family` (both judges of the embedded model, none for other families), a short name
            of `KNOWN`, a CLIP folder or Hub id, several of these with commas, judges, or None: not
            judged.
        family_name: of the model.
        labels: what to tell apart: erased concepts, targets, near and far names.
        erased: name, labels and kind of each erased concept, for judges of one thing.
        kinds: label to its kind, where it is no object.

    Raises:
        RecipeError: no such judge, one that is not installed or cannot be had, or no judge at all.
    """
    if which is None:
        return ()
    if not isinstance(which, str | Path):
        wrong: list[Any] = [judge for judge in which if not isinstance(judge, Judge)]
        if wrong:
            raise RecipeError("not a judge", got=type(wrong[0]).__name__, allowed=ALLOWED)
        return tuple(which)
    wanted = Wanted(tuple(labels), tuple(erased), kinds)
    found: list[Judge] = []
    for part in parts_of(which):
        if part == FAMILY:
            found += _of_family(family_name)
        elif part in KNOWN:
            KNOWN[part].check(part)
            found += KNOWN[part].make(wanted)
        else:
            found.append(clip_judge(part, wanted))
    return tuple(found)


def parts_of(which: str | Path) -> tuple[str, ...]:
    """Each judge of a comma list; a folder of that name is one judge."""
    text = str(which)
    if isinstance(which, Path) or Path(text).expanduser().is_dir():
        return (text,)
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def check_judge(which: str | None, concepts: Sequence[tuple[str, str]] = ()) -> None:
    """Refuse a judge that is not there, and one that cannot judge these concepts (name, kind).

    Raises:
        RecipeError: the first fault found.
    """
    parts = parts_of(which) if which is not None else ()
    for part in parts:
        if part == FAMILY:
            continue
        if part in KNOWN:
            KNOWN[part].check(part)
        elif Path(part).expanduser().exists() or is_hub_id(part.partition("@")[0]):
            check_clip(part)
        else:
            raise RecipeError(
                "no judge there",
                got=f"{part}: no short name, no Hub id, and a folder of that name has no config.json "
                "and no model.safetensors",
                allowed=f"{ALLOWED}; {did_you_mean(part, [FAMILY, 'none', *KNOWN])}",
            )
    if not parts or set(parts) - set(KNOWN):
        return  # a CLIP model, or a family's judge, is asked about anything
    for name, kind in concepts:
        if not any(KNOWN[part].fits(name, kind) for part in parts):
            raise RecipeError(
                f"{' and '.join(parts)}: no judge of {with_article(kind)} called {name!r}",
                got="; ".join(f"{part}: {KNOWN[part].about}" for part in parts),
                next=f"--judge {named_for([(name, kind)])}",
            )


def known_to_family(which: str | Path | None) -> bool:
    """Whether no judge but the family's own is asked: one that needs no calibration."""
    return which is None or set(parts_of(which)) <= {FAMILY}


def labels_of(family_name: str, word: str) -> tuple[str, ...]:
    """What a judge calls a word: twins and members too where a manifest knows them; none: unknown."""
    return manifest().labels(word) if family_name == "emoji" else (word,)


def _of_family(family_name: str) -> tuple[Judge, ...]:
    if family_name != "emoji":
        return ()
    from editforge.judges.emoji import EmojiJudge

    return EmojiJudge("a"), EmojiJudge("b")
