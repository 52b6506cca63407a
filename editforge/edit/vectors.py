"""From names to columns: which text states are erased, what they become, which are held.

A name is put into the templates of its kind; the token rule says which positions of each prompt become
columns. The same rule and templates serve erased, target and preserve texts, so that a target column
is the state the denoiser would have read with the other word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor

from editforge.families.encode import Span
from editforge.families.model import TextModel
from editforge.ground.errors import RecipeError
from editforge.ground.names import filled

END = 2  # in `Columns.groups`
TokenRule = Literal["subject", "subject_eot", "aligned", "all", "phrase"]
NullRule = Literal["bos", "eot", "pad_mean"]


def _with_place(templates: tuple[str, ...]) -> tuple[str, ...]:
    if not templates or not all("{n}" in text or "{a}" in text for text in templates):
        raise RecipeError(
            "a template lacks its place for the name",
            got=", ".join(templates) or "no template",
            allowed="{n} the name, {a} the name with its article",
        )
    return templates


Templates = Annotated[tuple[str, ...], AfterValidator(_with_place)]


def columns_of(tokens: TokenRule, window: int, pads: int = 4) -> int:
    """Columns that a rule takes of one prompt, at most."""
    few = {"subject": 1, "subject_eot": 2, "phrase": 2 + pads}
    return few.get(tokens, window - 1)


class Columns:
    """Text states of names as columns (d, k), float64; every prompt is encoded once.

    Args:
        model: whose encoder reads the prompts.
        templates: with {n} for the name, {a} for the name with its article.
        tokens: `subject`, the name's last token; `subject_eot`, it and the end of text; `aligned`,
            from the last token to the window's end, the longer side cut at its end; `all`, every
            position behind begin of text (whose state is the same for every prompt, so it is held
            but never erased), a name's with its target's by group as `_by_group` says; `phrase`, the
            last token, the words behind the name, the end of text and `pads` of the padding
            positions, evenly spaced.
        null_vector: what "nothing" is: the begin-of-text state, position 1 of the empty prompt
            (`eot`, it has read the whole prompt), or the mean of its padding states. Under `aligned`
            the empty prompt is read position by position, from the first (`bos`) or second (`eot`).
        pads: padding positions of the rule `phrase`.
    """

    def __init__(
        self,
        model: TextModel,
        templates: Sequence[str],
        tokens: TokenRule,
        null_vector: NullRule = "eot",
        pads: int = 4,
    ) -> None:
        _with_place(tuple(templates))
        self._encoder, self._tokens, self._null = model.encoder, tokens, null_vector
        self._templates, self._pads = tuple(templates), pads
        self._states: dict[str, Tensor] = {}
        self._again: dict[str, Tensor | None] = {}

    def groups(self, name: str) -> list[list[int]]:
        """Of rule `phrase`: which columns of `of(name)` are last tokens, words behind, ends, paddings.

        Over all templates; words behind the name are none where no template has any.
        """
        found: list[list[int]] = [[], [], [], []]
        first = 0
        for text in self._templates:
            span = self._encoder.span(filled(text, name), name) if name else None
            behind = span.end - span.last - 1 if span else 0
            for group, count in zip(found, (1, behind, 1, self._pads), strict=True):
                group += range(first, first + count)
                first += count
        return found

    @property
    def rule(self) -> list[object]:
        """What decides which states a name has: part of a cache's key."""
        return [self._tokens, self._null, self._pads, list(self._templates)]

    def read_all(self, names: Sequence[str]) -> None:
        """Encode all prompts of `names` in large batches; later calls find them."""
        prompts = [filled(text, name) for name in names for text in self._templates]
        if "" in prompts and "" not in self._states:
            # always in the whole window: the mean of its padding must not depend on its company
            self._states[""] = self._encoder.encode([""])[0]
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._states]
        if not missing:
            return
        window = None
        if self._tokens in ("subject", "subject_eot"):
            window = max(len(self._encoder.tokens(prompt)) for prompt in missing) + 2
        states = self._encoder.encode(missing, window=window)
        self._states |= dict(zip(missing, states, strict=True))

    def forget(self) -> None:
        """Drop the encoded prompts: memory back, time lost if they are asked for again."""
        self._states.clear()

    def keep(self, names: Sequence[str]) -> None:
        """Hold the columns of these names, once read, also when their prompts are forgotten.

        For rule `phrase` alone, which takes few columns of prompts that are read in the whole window:
        0.4 MB a name in SDXL. Other rules take all of a prompt, or read a short one, in a window that
        depends on what is read with it.
        """
        if self._tokens == "phrase":
            self._again |= {name: None for name in names if name not in self._again}

    def unread(self, names: Sequence[str]) -> list[str]:
        """Those whose columns are not held."""
        return [name for name in names if self._again.get(name) is None]

    def pair(self, name: str, target: str) -> tuple[Tensor, Tensor]:
        """Erased and target columns of one concept, (d, k) each.

        Raises:
            RecipeError: the texts do not fit, or both are one and the same.
        """
        self.read_all([name, target])
        sides = []
        for text in self._templates:
            own, other = self._paired(text, name, target)
            goal = self._at(text, target, other) if target else self._nothing(text, name, own)
            sides.append((self._at(text, name, own), goal))
        C = torch.cat([erased for erased, _ in sides], dim=1)
        T = torch.cat([goal for _, goal in sides], dim=1)
        if torch.equal(C, T):
            raise RecipeError(
                f"{name!r} and its target {target!r} are one to the text encoder",
                next="name another target: --target TEXT",
            )
        return C, T

    def subjects(self, name: str, target: str) -> list[int]:
        """Which columns of `pair(name, target)` are the name's last token: one a template."""
        found, first = [], 0
        for text in self._templates:
            own, _ = self._paired(text, name, target)
            found.append(first + own.index(self._encoder.span(filled(text, name), name).last))
            first += len(own)
        return found

    def of(self, name: str) -> Tensor:
        """Columns (d, k) of one name, or of the empty prompt; `all` includes begin of text."""
        if (known := self._again.get(name)) is not None:
            return known
        self.read_all([name])
        parts = [self._at(text, name, self._positions(text, name, 0)) for text in self._templates]
        found = torch.cat(parts, dim=1)
        if name in self._again:
            self._again[name] = found
        return found

    def _paired(self, text: str, name: str, target: str) -> tuple[list[int], list[int]]:
        """Positions of one template that are erased, and those of the target they are mapped to."""
        own = self._positions(text, name)
        if not target:
            return own, own
        if self._tokens == "all":
            erased = self._encoder.span(filled(text, name), name)
            goal = self._encoder.span(filled(text, target), target)
            return _by_group(erased, goal, self._encoder.window)
        other = self._positions(text, target)
        k = min(len(own), len(other))  # only `aligned` has sides of unequal length
        return own[:k], other[:k]

    def _positions(self, text: str, name: str, first: int = 1) -> list[int]:
        last = end = 1
        if name:
            span = self._encoder.span(filled(text, name), name)
            last, end = span.last, span.end
        window = self._encoder.window
        if self._tokens == "subject":
            return [last]
        if self._tokens == "subject_eot":
            return [last, end]
        if self._tokens == "phrase":
            padding = min(end + 1, window - 1)
            spaced = torch.linspace(padding, window - 1, self._pads).long().tolist()
            return [last, *range(last + 1, end), end, *spaced]
        return list(range(last if self._tokens == "aligned" else first, window))

    def _at(self, text: str, name: str, positions: Sequence[int]) -> Tensor:
        return self._states[filled(text, name)][list(positions)].T.double()

    def _nothing(self, text: str, name: str, own: Sequence[int]) -> Tensor:
        """What the positions `own` become if the target is no text, (d, k)."""
        empty, count = self._states[""].double(), len(own)
        if self._tokens == "aligned" and self._null != "pad_mean":
            first = 0 if self._null == "bos" else 1
            return empty[first : first + count].T
        column = {"bos": empty[0], "eot": empty[1], "pad_mean": empty[2:].mean(dim=0)}[self._null]
        goal = column[:, None].repeat(1, count)
        if self._tokens == "all":  # words before the name are those of every other prompt
            start = self._encoder.span(filled(text, name), name).start
            before = [at for at, position in enumerate(own) if position < start]
            goal[:, before] = self._at(text, name, [own[at] for at in before])
        return goal


def _by_group(own: Span, goal: Span, window: int) -> tuple[list[int], list[int]]:
    """Positions of two prompts of one template, behind begin of text, paired by what stands there.

    Words before the name in their order, the longer side (an article) cut. The names' tokens from the
    last one backwards; what a longer name has in front of that goes to the target's last token. Words
    behind the name in their order, end to end of text, padding in its order, the longer side cut.
    """
    before = list(range(1, min(own.start, goal.start)))
    name = list(range(own.start, own.last + 1))
    back = [goal.last - (own.last - at) for at in name]
    back = [at if at >= goal.start else goal.last for at in back]
    words = range(1, min(own.end - own.last, goal.end - goal.last))
    padding = range(window - max(own.end, goal.end))
    left = [*before, *name, *(own.last + k for k in words), *(own.end + k for k in padding)]
    right = [*before, *back, *(goal.last + k for k in words), *(goal.end + k for k in padding)]
    return left, right
