"""The gate's sets (benchmark 11.1): name, aliases, near, far, and the reference for each target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

from editforge.emoji import manifest
from editforge.evaluate.prompts import emoji, general
from editforge.evaluate.prompts.core import SCORING_SEEDS, Counts, GatePrompts, Prompt, Set, Subject
from editforge.ground.errors import RecipeError
from editforge.ground.names import fold

_NAME_TEMPLATES = tuple(range(8))
_ALIAS_TEMPLATES = (0, 1, 3, 6)
_KEPT_TEMPLATES = (0, 3)
_SEEDS_A_GATE = 64

_HeldOut = Callable[..., Prompt]


def gate_prompts(
    concepts: Sequence[Any],
    family_name: str,
    *,
    near: Sequence[str] | None = None,
    far: Sequence[str] | None = None,
    targets: Mapping[str, str] | None = None,
    seed: int = 0,
    counts: Counts | None = None,
) -> GatePrompts:
    """All prompts of one gate.

    Args:
        concepts: erased concepts: objects with name, aliases and kind.
        family_name: `emoji` reads the manifest, others use templates by kind.
        near: near names instead of the lists; other families have no other source.
        far: far names instead of the panels.
        targets: what erased concepts became: drawn by the base in place of the name, on the noise
            of the first name images, and neither near nor far. None: unknown.
        seed: picks scoring seeds; two whose difference is no multiple of 93 share none.
        counts: how many images; None is the `gate` tier.
    """
    if not concepts:
        raise RecipeError("nothing is erased", next="name at least one concept")
    counts = counts or Counts()
    blocks = len(SCORING_SEEDS) // _SEEDS_A_GATE
    start = SCORING_SEEDS.start + seed % blocks * _SEEDS_A_GATE
    targets = targets or {}
    room = emoji if family_name == "emoji" else general
    subjects = tuple(room.subject(concept, near, far) for concept in concepts)
    prompts: list[Prompt] = []
    reference: list[Prompt] = []
    notes: list[str] = []
    for turn, subject in enumerate(subjects):
        drawer = _drawer(room, subject.kind)
        share = counts.of(turn, len(subjects), alias=False)
        words = [(subject.name, template) for template in _NAME_TEMPLATES]
        prompts += _spread(drawer, words, "name", subject.name, share, turn, start)
        if subject.name in targets:
            instead = partial(drawer, instead=targets[subject.name])
            first = min(share, counts.reference)
            reference += _spread(instead, words, "reference", subject.name, first, turn, start)
        words = [(alias, template) for template in _ALIAS_TEMPLATES for alias in subject.aliases]
        aliases = counts.of(turn, len(subjects), alias=True)
        prompts += _spread(drawer, words, "alias", subject.name, aliases, turn, start)
        if not subject.aliases:
            notes.append(f"no alias of {subject.name} is known: aliases skipped")
        elif subject.aliases_given:
            notes.append(f"aliases of {subject.name} were given to the eraser")
    limit = counts.names * (counts.several if len(subjects) > 1 else 1)
    skip = _skipped(subjects, room) | {fold(target) for target in targets.values()}
    near_names = _rotated([s.near for s in subjects], skip, limit)
    far_names = _rotated([s.far for s in subjects], {*skip, *map(fold, near_names)}, limit)
    near_kind = subjects[0].kind if near is not None else "object"
    kept: list[tuple[list[str], Set, str]]
    kept = [(near_names, "near", near_kind), (far_names, "far", "object")]
    for names, which, kind in kept:
        if not names:
            notes.append(f"no {which} names: what happened to them is unknown")
        drawer = _drawer(room, kind)
        for name in names:
            words = [(name, template) for template in _KEPT_TEMPLATES]
            prompts += _spread(drawer, words, which, name, counts.images, 0, start)
    kinds = {name: near_kind for name in near_names}
    for subject in subjects:
        kinds |= {word: subject.kind for word in (*subject.labels, targets.get(subject.name, ""))}
    kinds = {} if room is emoji else {word: kind for word, kind in kinds.items() if word}
    return GatePrompts(tuple(prompts), tuple(reference), subjects, tuple(notes), kinds)


def _drawer(room: Any, kind: str) -> _HeldOut:
    return emoji.held_out if room is emoji else partial(general.held_out, kind=kind)


def _spread(
    drawer: _HeldOut,
    words: list[tuple[str, int]],
    which: Set,
    concept: str,
    images: int,
    turn: int,
    start: int,
) -> list[Prompt]:
    """Hand out images over (word, template) pairs in turn; concepts start at different ones."""
    if not words:
        return []
    seeds: dict[tuple[str, int], list[int]] = {}
    for image in range(images):
        pair = words[(image + turn * images) % len(words)]
        seeds.setdefault(pair, []).append(start + len(seeds.get(pair, ())))
    return [drawer(word, template, which, concept, own) for (word, template), own in seeds.items()]


def _skipped(subjects: tuple[Subject, ...], room: Any) -> set[str]:
    """Erased names, aliases and twins, folded: never near, never far."""
    skip = {fold(word) for s in subjects for word in (s.name, *s.aliases, *s.labels)}
    if room is emoji:
        skip |= {
            fold(label) for s in subjects for word in s.aliases for label in manifest().labels(word)
        }
    return skip


def _rotated(lists: list[tuple[str, ...]], skip: set[str], limit: int) -> list[str]:
    """The first names of each list in turn, without skipped ones and repeats."""
    rounds = zip_longest(*lists)
    names = [name for turn in rounds for name in turn if name and fold(name) not in skip]
    return list(dict.fromkeys(names))[:limit]
