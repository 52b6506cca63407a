"""The embedded model's subjects and held-out prompts, from the manifest alone.

Colors and styles rotate with the concept: never the drawing's main color (measured on base samples
on white, because the art is not shipped), never white, never a style that lacks the concept.
Names without a NEAR list get the four nearest in the CLIP text tower and the four nearest in its
vision tower, both computed from base samples by the calibration. Without a panel, things that live
or are eaten are far from panel A, everything else from panel B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from editforge import emoji
from editforge.emoji import EmojiConcept
from editforge.evaluate.prompts.core import Prompt, Set, Subject
from editforge.ground.names import fold, with_article
from editforge.judges.calibration import calibration

_LIVING_OR_FOOD = ("animals-nature", "food-drink")


def subject(concept: Any, near: Sequence[str] | None, far: Sequence[str] | None) -> Subject:
    """What to draw for one erased concept; a word the manifest lacks has no labels.

    Args:
        concept: has name, aliases and kind.
        near: replaces the near names.
        far: replaces the far names.
    """
    manifest = emoji.manifest()
    found, members = manifest.find(concept.name), manifest.members(concept.name)
    if members:
        others: tuple[str, ...] = members
    else:
        others = (found.name, *found.aliases) if found else ()
    taken = {fold(concept.name), *map(fold, concept.aliases)}
    unseen = tuple(word for word in others if fold(word) not in taken)
    return Subject(
        name=concept.name,
        kind=concept.kind,
        labels=emoji.manifest().labels(concept.name),
        aliases=unseen or tuple(concept.aliases),
        aliases_given=bool(concept.aliases) and not unseen,
        near=tuple(near) if near is not None else _near(concept.name, found),
        far=tuple(far) if far is not None else _far(concept.name, found),
    )


def held_out(
    word: str,
    which: int,
    set: Set,
    concept: str,
    seeds: Sequence[int],
    *,
    instead: str | None = None,
    any_color: bool = False,
) -> Prompt:
    """Held-out template t1 to t8 (`which` from 0) for a word.

    Args:
        word: name, alias or group word.
        which: index of the template.
        set: the set it is drawn for.
        concept: the erased concept it tests, or the word itself.
        seeds: one image each.
        instead: what the text says in place of the word, on its color, in its style, on its noise.
        any_color: True where main colors are being measured.
    """
    manifest = emoji.manifest()
    found = manifest.find(word)
    own_name = found.name if found else word
    main = None if any_color else calibration().main_colors.get(own_name)
    colors = [color for color in manifest.colors if color not in ("white", main)]
    styles = [s.name for s in manifest.styles if found is None or s.name in found.art]
    turn = (found.index if found else len(word)) + (0 if word == own_name else len(word))
    color = {3: 0, 4: 4, 5: 0, 7: 2}.get(which, 0)  # t6 repeats the color of t4
    said = word if instead is None else instead
    text = said and manifest.templates["held_out"][which].format(
        a=with_article(said),
        n=said,
        color=colors[(turn + color) % len(colors)],
        style=styles[(turn + which) % len(styles)],
    )
    template = f"t{which + 1}"
    return Prompt(
        f"{word}/{template}",
        text,
        set,
        said,
        concept,
        emoji.manifest().labels(said),
        template,
        tuple(seeds),
    )


def _near(name: str, found: EmojiConcept | None) -> tuple[str, ...]:
    manifest = emoji.manifest()
    key = found.name if found else name
    if key in manifest.broad:
        return manifest.broad[key].near
    if key in manifest.near:
        lists = manifest.near[key]
        return _alternating(lists.meaning, lists.appearance)
    return _alternating(*calibration().near.get(key, ((), ())))


def _far(name: str, found: EmojiConcept | None) -> tuple[str, ...]:
    manifest = emoji.manifest()
    key = found.name if found else name
    groups = {c.group for c in manifest.concepts if c.name in manifest.labels(name)}
    by_group = "A" if groups.intersection(_LIVING_OR_FOOD) else "B"
    panel = manifest.far_panel.get(key, by_group)
    names = manifest.far[panel]
    if panel != "DEV":
        return names
    group_of = {c.name: c.group for c in manifest.concepts}
    return tuple(n for n in names if group_of[n] not in groups)


def _alternating(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    """One of each in turn, without repeats; leftovers at the end."""
    longest = max(len(first), len(second))
    pairs = [name for i in range(longest) for name in (*first[i : i + 1], *second[i : i + 1])]
    return tuple(dict.fromkeys(pairs))
