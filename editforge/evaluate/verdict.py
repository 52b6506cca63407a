"""The verdict of the `gate` tier (benchmark 11.1): what failed, by how much, and what to turn.

Every erased concept has a verdict of its own; the run has the worst of all, and every check is
kept. Point estimates decide; a verdict whose interval reaches over the threshold says *close*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from editforge.artifacts.report import (
    Check,
    ConceptVerdict,
    Estimate,
    NameRate,
    Remedy,
    Status,
    Verdict,
)
from editforge.evaluate.prompts import Subject
from editforge.evaluate.prompts.core import Set
from editforge.evaluate.scores import BASE_PRESENCE, Scores

RECOGNIZABLE = 0.7
KEPT_RECOGNIZABLE = 0.8
ONE_PICTURE = 0.9
MEDOID_TOLERANCE = 0.02
PRESENCE = 0.1
SEEN_TWICE = 2
KEPT = 0.8
WELL_DRAWN = 0.75
WIPED = 1 / 3
FEW_IMAGES = 32
POOR_TARGET = 0.5
_WORST_FIRST: tuple[Status, ...] = ("collapsed", "not erased", "neighbor lost", "not judged")

_Asked = list[tuple[Status, Check]]


def verdict(
    scores: Scores,
    subjects: Sequence[Subject],
    strength: float,
    doubts: Mapping[str, str] | None = None,
) -> Verdict:
    """Ask all questions, of all concepts together and of each alone.

    Args:
        scores: of the paired images.
        subjects: the erased concepts.
        strength: of the edit; proposals are relative to it.
        doubts: erased concept to why a judge that knows it cannot be believed about it.
    """
    doubts = doubts or {}
    own = tuple(_concept(scores, subject, strength, doubts) for subject in subjects)
    judged = [subject for subject in subjects if subject.name in scores.judged]
    asked: _Asked = [("not judged", _base_draws_it(scores, subjects, doubts))]
    if scores.base is not None and not scores.named:
        asked.append(("not judged", _something_is_drawn()))
    if judged:
        asked += _of_concepts(scores, judged, strength)
        if len(subjects) > 1:
            asked.append(_each(own))
        asked.append(("collapsed", _kept_recognizable(scores, strength)))
        for which in ("near", "far"):
            asked.append(("neighbor lost", _kept(scores, which, strength)))
            asked.append(("neighbor lost", _none_wiped(scores, which, strength)))
    return _worst(asked, own, scores)


def poor_targets(
    scores: Scores, subjects: Sequence[Subject], targets: Mapping[str, str]
) -> list[str]:
    """A warning for each target that the base itself draws badly, so that it says little."""
    found = []
    for subject in subjects:
        seen = scores.reference.recognizable([subject.name])
        if seen.value is not None and seen.value < POOR_TARGET and subject.name in targets:
            what = targets[subject.name] or "nothing at all"
            found.append(
                f"the base draws {what}, the target of {subject.name}, recognizably in "
                f"{_percent(seen)} of {seen.n} images only: choose another target"
            )
    return found


def _worst(asked: _Asked, own: tuple[ConceptVerdict, ...], scores: Scores) -> Verdict:
    checks = tuple(check for _, check in asked)
    failed = _failed(asked)
    if not failed:
        said = [check.message for check in checks if check.name in _SAID]
        message = "; ".join(said)
        return Verdict(status="erased", passed=True, message=message, checks=checks, concepts=own)
    status, check = failed[0]
    return Verdict(
        status=status,
        passed=None if status == "not judged" else False,
        message=check.message,
        remedy=check.remedy,
        checks=checks,
        concepts=own,
    )


def _concept(
    scores: Scores, subject: Subject, strength: float, doubts: Mapping[str, str]
) -> ConceptVerdict:
    """One concept's own verdict, from its own images."""
    drawn = _base_draws_it(scores, [subject], doubts)
    asked: _Asked = [("not judged", drawn)]
    if drawn.holds:
        if not scores.named:
            asked.append(("not judged", _something_is_drawn()))
        asked += _of_concepts(scores, [subject], strength)
    kept: tuple[Status, Check] = ("erased", next((c for s, c in asked if s == "not erased"), drawn))
    status, check = next(iter(_failed(asked)), kept)
    return ConceptVerdict(
        name=subject.name,
        status=status,
        message=check.message,
        drawn_as=scores.drawn_as(subject.name),
        checks=tuple(check for _, check in asked),
    )


def _failed(asked: _Asked) -> _Asked:
    """What does not hold, the worst first; of equal ones in the order of asking."""
    failed = [(status, check) for status, check in asked if check.holds is False]
    return sorted(failed, key=lambda item: _WORST_FIRST.index(item[0]))


def _of_concepts(scores: Scores, subjects: Sequence[Subject], strength: float) -> _Asked:
    """What is asked of one concept's images, or of several concepts' together."""
    return [
        ("collapsed", _recognizable(scores, subjects, strength)),
        ("collapsed", _many_pictures(scores, subjects, strength)),
        ("not erased", _erased(scores, "name", subjects, strength)),
        ("not erased", _erased(scores, "alias", subjects, strength)),
    ]


def _something_is_drawn() -> Check:
    return Check(
        name="a judge says what is drawn instead",
        holds=False,
        message="whether the pictures still show anything, and what is kept, no judge here says: "
        "name one more, of objects or styles",
        remedy=Remedy(judge=True),
    )


def _base_draws_it(scores: Scores, subjects: Sequence[Subject], doubts: Mapping[str, str]) -> Check:
    name = "the base draws it and a judge knows it"
    unknown = [s.name for s in subjects if s.name not in scores.known_names]
    if unknown:
        doubted = [doubts[name] for name in unknown if name in doubts]
        message = f"no judge knows {_listed(unknown)}: what became of it is not known"
        return Check(
            name=name,
            holds=False,
            message="; ".join(doubted[:3]) or message,
            remedy=Remedy(judge=True),
        )
    poor = [s.name for s in subjects if s.name not in scores.judged]
    base = scores.presence("name", [s.name for s in subjects])["base"]
    message = f"the base draws {_names(subjects)} in {_percent(base)} of {base.n} images"
    if poor and len(subjects) > 1:
        message += f", and {_listed(poor)} in under {BASE_PRESENCE:.0%}"
    return Check(name=name, holds=not poor, **_numbers(base, BASE_PRESENCE), message=message)


def _recognizable(scores: Scores, subjects: Sequence[Subject], strength: float) -> Check:
    """Against what the base draws for the target.

    With few images of a concept, or a target that the base draws badly, the share is too uncertain to
    decide: there it must be under the threshold clearly, by the upper end of its interval.
    """
    name = "erased images are recognizable"
    concepts = [subject.name for subject in subjects]
    share = scores.against_reference(concepts)
    if share.value is None or share.hi is None:
        return _unasked(name, share.reason)
    reference = scores.reference.recognizable(concepts)
    poor = reference.value is None or reference.value < POOR_TARGET
    decides = share.hi if poor or share.n < FEW_IMAGES else share.value
    holds = decides >= RECOGNIZABLE
    message = (
        f"images of {_names(subjects)} are recognizable {_percent(share)} as often as what the "
        "base draws for the target"
    )
    return _check(name, holds, share, RECOGNIZABLE, message, _other_target(subjects, strength))


def _kept_recognizable(scores: Scores, strength: float) -> Check:
    name = "near and far images are recognizable"
    share = scores.kept_recognizable()
    if share.value is None:
        return _unasked(name, share.reason)
    message = f"near and far images are recognizable {_percent(share)} as often as the base's"
    holds = share.value >= KEPT_RECOGNIZABLE
    return _check(name, holds, share, KEPT_RECOGNIZABLE, message, Remedy(strength=_less(strength)))


def _many_pictures(scores: Scores, subjects: Sequence[Subject], strength: float) -> Check:
    """A concept whose images are nearly one picture, where the base's for the target are not."""
    name = "erased images differ from each other"
    shares = {
        subject.name: scores.one_picture([subject.name], MEDOID_TOLERANCE) for subject in subjects
    }
    same = [n for n, (own, reference) in shares.items() if own >= ONE_PICTURE > reference]
    worst = max(own for own, _ in shares.values())
    which = f" of {_listed(same)}" if same else ""
    return Check(
        name=name,
        holds=not same,
        value=worst,
        threshold=ONE_PICTURE,
        message=f"{worst:.0%} of the images{which} are nearly one picture",
        remedy=_other_target(subjects, strength) if same else None,
    )


def _erased(scores: Scores, which: Set, subjects: Sequence[Subject], strength: float) -> Check:
    name = "the name is erased" if which == "name" else "the aliases are erased"
    concepts = [subject.name for subject in subjects]
    rates = scores.presence(which, concepts)
    edited, base = rates["edited"], rates["base"]
    if edited.value is None or base.value is None:
        return _unasked(name, edited.reason)
    what = _names(subjects) if which == "name" else "an alias"
    message = f"{what} is drawn in {_percent(edited)} of {edited.n} images (base {_percent(base)})"
    hits = round(edited.value * edited.n)
    holds = edited.value <= PRESENCE or hits < SEEN_TWICE
    if holds and base.value <= PRESENCE:
        return _unasked(name, f"the base draws it in {_percent(base)} of {base.n} images")
    words = {word for s in subjects for word in ((s.name,) if which == "name" else s.aliases)}
    worst = sorted(
        (r for r in scores.rates if r.set == which and r.name in words and r.edited),
        key=lambda rate: -(rate.edited or 0),
    )[:3]
    if holds:
        return _check(name, True, edited, PRESENCE, message, None)
    listed = ", ".join(f"{rate.name} {rate.edited:.0%}" for rate in worst)
    remedy = Remedy(strength=_more(strength, edited.value))
    if not scores.pixel_drift.any():
        listed += "; the edit changes no image at all: check its strength and modules"
    elif which == "alias":
        seen = {rate.name for rate in worst}
        owners = {s.name: tuple(a for a in s.aliases if a in seen) for s in subjects}
        remedy = Remedy(aliases={name: words for name, words in owners.items() if words})
    return _check(name, False, edited, PRESENCE, f"{message}; worst: {listed}", remedy)


def _each(own: Sequence[ConceptVerdict]) -> tuple[Status, Check]:
    """The worst of the concepts' own verdicts: pooling must not hide one of them."""
    failed = [one for one in own if one.status not in ("erased", "not judged")]
    failed.sort(key=lambda one: _WORST_FIRST.index(one.status))
    name = "every concept is erased"
    if not failed:
        count = sum(one.status == "erased" for one in own)
        message = f"{count} of {len(own)} concepts are erased, each by its own images"
        return "not erased", Check(name=name, holds=True, message=message)
    listed = "; ".join(f"{one.name}, {one.status}: {one.message}" for one in failed[:3])
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    remedy = next(c.remedy for c in failed[0].checks if c.holds is False and c.remedy)
    message = f"{len(failed)} of {len(own)} concepts fail: {listed}{more}"
    return failed[0].status, Check(name=name, holds=False, message=message, remedy=remedy)


def _kept(scores: Scores, which: Set, strength: float) -> Check:
    name = f"{which} names are kept"
    share = scores.kept(which)
    if share.value is None:
        return _unasked(name, share.reason)
    message = f"{which} names keep {_percent(share)}"
    if share.value >= KEPT:
        return _check(name, True, share, KEPT, message, None)
    worst = sorted(_drawn(scores, which), key=_left)[:3]
    message += f"; worst: {', '.join(map(_loss, worst))}"
    remedy = Remedy(preserve=tuple(rate.name for rate in worst), strength=_less(strength))
    return _check(name, False, share, KEPT, message, remedy)


def _none_wiped(scores: Scores, which: Set, strength: float) -> Check:
    """Names that the base draws well and that are drawn in at most a third as many images."""
    name = f"no {which} name is lost"
    asked = [rate for rate in _drawn(scores, which) if (rate.base or 0) >= WELL_DRAWN]
    if not asked:
        return _unasked(name, f"the base draws no {which} name in {WELL_DRAWN:.0%} of its images")
    lost = sorted((rate for rate in asked if _left(rate) <= WIPED + 1e-9), key=_left)
    if not lost:
        worst = min(asked, key=_left)
        message = f"of {len(asked)} {which} names none is lost; worst: {_loss(worst)}"
        return Check(name=name, holds=True, message=message)
    return Check(
        name=name,
        holds=False,
        message=f"{which} name lost: {', '.join(map(_loss, lost))}",
        remedy=Remedy(preserve=tuple(rate.name for rate in lost), strength=_less(strength)),
    )


def _drawn(scores: Scores, which: Set) -> list[NameRate]:
    return [rate for rate in scores.rates if rate.set == which and rate.base]


def _left(rate: NameRate) -> float:
    return (rate.edited or 0) / (rate.base or 1)


def _loss(rate: NameRate) -> str:
    return f"{rate.name} {rate.base:.0%} to {rate.edited:.0%} of {rate.n} images"


def _other_target(subjects: Sequence[Subject], strength: float) -> Remedy:
    """Another target where one concept's images are at fault, and a weaker edit instead."""
    one = subjects[0].name if len(subjects) == 1 else None
    return Remedy(target=one, strength=_less(strength))


def _check(
    name: str,
    holds: bool,
    estimate: Estimate,
    threshold: float,
    message: str,
    remedy: Remedy | None,
) -> Check:
    low, high = estimate.lo, estimate.hi
    close = low is not None and high is not None and low <= threshold <= high
    return Check(
        name=name,
        holds=holds,
        **_numbers(estimate, threshold),
        close=close,
        message=message + (f" (close: 95 % interval {low:.0%} to {high:.0%})" if close else ""),
        remedy=None if holds else remedy,
    )


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


def _names(subjects: Sequence[Subject]) -> str:
    return _listed([subject.name for subject in subjects], "or")


def _listed(names: Sequence[str], word: str = "and") -> str:
    if len(names) > 6:
        return f"{', '.join(names[:5])} {word} {len(names) - 5} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def _percent(estimate: Estimate) -> str:
    return "?" if estimate.value is None else f"{estimate.value:.0%}"


_SAID = (
    "the name is erased",
    "every concept is erased",
    "near names are kept",
    "far names are kept",
)
