"""The verdict of the `gate` tier: the first question that fails is the result, all are kept.

Order, benchmark 11.1: not judged, collapsed, not erased, neighbor lost, erased. Every message says
the number, the worst names and which knob to turn; a proposed strength follows from the shortfall.
"""

from __future__ import annotations

from collections.abc import Sequence

from editforge.artifacts.report import Check, Estimate, NameRate, Status, Verdict
from editforge.evaluate.prompts import Subject
from editforge.evaluate.prompts.core import Set
from editforge.evaluate.scores import ERASED, SETS, Scores

BASE_PRESENCE = 0.5
VALID = 0.8
ONE_PICTURE = 0.9
MEDOID_TOLERANCE = 0.02
PRESENCE = 0.1
KEPT = 0.8


def verdict(scores: Scores, subjects: Sequence[Subject], strength: float) -> Verdict:
    """Ask all questions in order.

    Args:
        scores: of the paired images.
        subjects: the erased concepts.
        strength: of the edit; proposals are relative to it.
    """
    asked: list[tuple[Status, Check]] = [
        ("not judged", _base_draws_it(scores, subjects)),
        ("collapsed", _valid(scores, "erased images show something", ERASED, strength)),
        ("collapsed", _valid(scores, "images show something", SETS, strength)),
        ("collapsed", _many_pictures(scores, strength)),
        ("not erased", _erased(scores, "name", subjects, strength)),
        ("not erased", _erased(scores, "alias", subjects, strength)),
        ("neighbor lost", _kept(scores, "near", strength)),
        ("neighbor lost", _kept(scores, "far", strength)),
    ]
    checks = tuple(check for _, check in asked)
    for status, check in asked:
        if check.holds is False:
            passed = None if status == "not judged" else False
            return Verdict(
                status=status, passed=passed, message=check.message, next=check.next, checks=checks
            )
    message = "; ".join(check.message for check in (*checks[4:5], *checks[6:8]))
    return Verdict(status="erased", passed=True, message=message, checks=checks)


def _base_draws_it(scores: Scores, subjects: Sequence[Subject]) -> Check:
    name = "the base draws it and a judge knows it"
    if scores.base is None:
        return Check(
            name=name,
            holds=False,
            message="no judge knows " + ", ".join(s.name for s in subjects) + "; drift alone",
            next="--set evaluate.judge=CLIP_FOLDER names a judge, or look at grid.png",
        )
    base = scores.presence("name")["base"]
    holds = base.value is not None and base.value >= BASE_PRESENCE
    return Check(
        name=name,
        holds=holds,
        **_numbers(base, BASE_PRESENCE),
        message=f"the base draws {_and(subjects)} in {_percent(base)} of {base.n} images",
        next=None if holds else "look at grid.png: the judges do not see it in the base model",
    )


def _valid(scores: Scores, name: str, sets: tuple[Set, ...], strength: float) -> Check:
    if scores.base is None:
        return _unasked(name, "no judge")
    share = scores.kept_valid(*sets)
    if share.value is None:
        return _unasked(name, share.reason)
    return Check(
        name=name,
        holds=share.value >= VALID,
        **_numbers(share, VALID),
        message=f"{name}: {share.value:.0%} of the base's",
        next=f"--strength {_less(strength)}, or --set edit.ridge to ten times its value",
    )


def _many_pictures(scores: Scores, strength: float) -> Check:
    share = scores.medoid_share
    return Check(
        name="erased images differ from each other",
        holds=share < ONE_PICTURE,
        value=share,
        threshold=ONE_PICTURE,
        message=f"{share:.0%} of the name and alias images are nearly one picture",
        next=f"--strength {_less(strength)}, or another --target",
    )


def _erased(scores: Scores, which: Set, subjects: Sequence[Subject], strength: float) -> Check:
    title = "the name" if which == "name" else "the aliases"
    name = f"{title} {'is' if which == 'name' else 'are'} erased"
    if scores.base is None or scores.edited is None:
        return _unasked(name, "no judge")
    rates = scores.presence(which)
    edited, base = rates["edited"], rates["base"]
    if edited.value is None:
        return _unasked(name, edited.reason)
    what = _and(subjects) if which == "name" else "an alias"
    message = f"{what} is drawn in {_percent(edited)} of {edited.n} images (base {_percent(base)})"
    if edited.value <= PRESENCE:
        return Check(name=name, holds=True, **_numbers(edited, PRESENCE), message=message)
    worst = sorted(_of(scores, which), key=lambda rate: -(rate.edited or 0))[:3]
    listed = [f"{rate.name} {rate.edited:.0%}" for rate in worst if rate.edited]
    if not scores.pixel_drift.any():
        knob = "the edit changes no image at all: check its strength and modules"
    elif which == "name":
        knob = f"--strength {_more(strength, edited.value)}, or another target: --target TEXT"
    else:
        also = " ".join(f'"{rate.name}"' for rate in worst if rate.edited)
        knob = f"--strength {_more(strength, edited.value)}, or erase by name too: {also}"
    return Check(
        name=name,
        holds=False,
        **_numbers(edited, PRESENCE),
        message=f"{message}; worst: {', '.join(listed)}",
        next=knob,
    )


def _kept(scores: Scores, which: Set, strength: float) -> Check:
    name = f"{which} names are kept"
    share = scores.kept(which)
    if share.value is None or share.hi is None:
        return _unasked(name, share.reason)
    message = f"{which} names keep {share.value:.0%} [{share.lo:.0%}, {share.hi:.0%}]"
    if share.hi >= KEPT:
        return Check(name=name, holds=True, **_numbers(share, KEPT), message=message)
    lost = [rate for rate in _of(scores, which) if rate.base and rate.edited is not None]
    worst = sorted(lost, key=lambda rate: (rate.edited or 0) / (rate.base or 1))[:3]
    listed = [f"{rate.name} lost {1 - (rate.edited or 0) / (rate.base or 1):.0%}" for rate in worst]
    preserve = " ".join(f'--preserve "{rate.name}"' for rate in worst)
    return Check(
        name=name,
        holds=False,
        **_numbers(share, KEPT),
        message=f"{message}; worst: {', '.join(listed)}",
        next=f"{preserve}, or --set edit.preserve_weight=4, or --strength {_less(strength)}",
    )


def _of(scores: Scores, which: Set) -> list[NameRate]:
    return [rate for rate in scores.rates() if rate.set == which]


def _unasked(name: str, reason: str | None) -> Check:
    return Check(name=name, holds=None, message=f"{name}: unknown, {reason}")


def _numbers(estimate: Estimate, threshold: float) -> dict[str, float | None]:
    return {
        "value": estimate.value,
        "low": estimate.lo,
        "high": estimate.hi,
        "threshold": threshold,
    }


def _more(strength: float, presence: float) -> float:
    """A quarter more for a small shortfall, twice as much where nothing went."""
    return round(strength * (1.3 if presence <= 0.3 else 1.6 if presence <= 0.6 else 2.0), 2)


def _less(strength: float) -> float:
    return round(strength * 0.7, 2)


def _and(subjects: Sequence[Subject]) -> str:
    names = [subject.name for subject in subjects]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _percent(estimate: Estimate) -> str:
    return "?" if estimate.value is None else f"{estimate.value:.0%}"
