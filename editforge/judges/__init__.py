"""Judges: frozen classifiers that label an image. A new one is a file here that fulfils `Judge`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editforge.emoji import manifest
from editforge.ground.errors import RecipeError
from editforge.judges.core import NONE as NONE
from editforge.judges.core import Judge as Judge
from editforge.judges.core import Judged as Judged
from editforge.judges.core import judge_images as judge_images


def load_judges(
    which: str | Path | Sequence[Judge] | None, family_name: str, labels: Sequence[str]
) -> tuple[Judge, ...]:
    """The judges a recipe asks for.

    Args:
        which: `family` (both judges of the embedded model, none for other families), a folder with
            a CLIP model, judges, or None: not judged.
        family_name: of the model.
        labels: for a CLIP folder: what to tell apart: erased concepts, targets, near and far names.
    """
    if which is None:
        return ()
    if which == "family":
        if family_name != "emoji":
            return ()
        from editforge.judges.emoji import EmojiJudge

        return EmojiJudge("a"), EmojiJudge("b")
    if isinstance(which, str | Path):
        from editforge.judges.zero_shot import ClipZeroShotJudge

        return (ClipZeroShotJudge(model=Path(which), labels=labels),)
    wrong: list[Any] = [judge for judge in which if not isinstance(judge, Judge)]
    if wrong:
        raise RecipeError(
            "not a judge", got=type(wrong[0]).__name__, allowed="family, a CLIP folder, null"
        )
    return tuple(which)


def labels_of(family_name: str, word: str) -> tuple[str, ...]:
    """What a judge calls a word: twins and members too where a manifest knows them; none: unknown."""
    return manifest().labels(word) if family_name == "emoji" else (word,)
