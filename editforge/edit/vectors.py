"""From names to columns: which text states are erased, what they become, which are held.

A name is put into the family's templates for its kind; the token rule says which positions of each
prompt become columns. The same rule and templates serve erased, target and preserve texts, so that
column i of the targets is the state the denoiser would have read with the other word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from editforge.artifacts.concepts import with_article
from editforge.errors import RecipeError
from editforge.families.model import Model

TokenRule = Literal["subject", "subject_eot", "aligned", "all"]
NullRule = Literal["bos", "eot", "pad_mean"]


class Columns:
    """Text states of names as columns (d, k), float64; every prompt is encoded once.

    Args:
        model: whose encoder reads the prompts.
        templates: with {n} for the name, {a} for the name with its article.
        tokens: `subject`, the name's last token; `subject_eot`, it and the end of text; `aligned`,
            from the last token to the window's end, cut to the shorter side; `all`, every position
            behind begin of text (whose state is the same for every prompt).
        null_vector: what "nothing" is: the begin-of-text state, position 1 of the empty prompt
            (`eot`, it has read the whole prompt), or the mean of its padding states.
    """

    def __init__(
        self, model: Model, templates: Sequence[str], tokens: TokenRule, null_vector: NullRule
    ) -> None:
        if not templates or not all("{n}" in text or "{a}" in text for text in templates):
            raise RecipeError(
                "a template lacks its place for the name",
                got=", ".join(templates) or "no template",
                allowed="{n} the name, {a} the name with its article",
            )
        self._encoder, self._tokens, self._null = model.encoder, tokens, null_vector
        self._templates = tuple(templates)
        self._states: dict[str, Tensor] = {}

    def read_all(self, names: Sequence[str]) -> None:
        """Encode all prompts of `names` in large batches; later calls find them."""
        prompts = [self._fill(text, name) for name in names if name for text in self._templates]
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._states]
        if not missing:
            return
        window = None
        if self._tokens in ("subject", "subject_eot"):
            window = max(len(self._encoder.tokens(prompt)) for prompt in missing) + 2
        states = self._encoder.encode(missing, window=window)
        self._states |= dict(zip(missing, states, strict=True))

    def pair(self, name: str, target: str) -> tuple[Tensor, Tensor]:
        """Erased and target columns of one concept, (d, k) each.

        Raises:
            RecipeError: the texts do not fit, or both are one and the same.
        """
        self.read_all([name, target])
        sides = []
        for text in self._templates:
            own = self._positions(text, name)
            if target:
                other = self._positions(text, target)
            else:
                other = [None] * len(own)
            k = min(len(own), len(other))
            erased = self._at(text, name, own)[:, -k:] if k < len(own) else self._at(text, name, own)
            sides.append((erased, self._at(text, target, other[-k:])))
        C = torch.cat([erased for erased, _ in sides], dim=1)
        T = torch.cat([goal for _, goal in sides], dim=1)
        if torch.equal(C, T):
            raise RecipeError(
                f"{name!r} and its target {target!r} are one to the text encoder",
                next="name another target: --target TEXT",
            )
        return C, T

    def of(self, name: str) -> Tensor:
        """Columns (d, k) of one name."""
        self.read_all([name])
        parts = [self._at(text, name, self._positions(text, name)) for text in self._templates]
        return torch.cat(parts, dim=1)

    def _fill(self, text: str, name: str) -> str:
        return text.replace("{a}", with_article(name)).replace("{n}", name)

    def _positions(self, text: str, name: str) -> list[int | None]:
        span = self._encoder.span(self._fill(text, name), name)
        if self._tokens == "subject":
            return [span.last]
        if self._tokens == "subject_eot":
            return [span.last, span.end]
        first = span.last if self._tokens == "aligned" else 1
        return list(range(first, self._encoder.window))

    def _at(self, text: str, name: str, positions: Sequence[int | None]) -> Tensor:
        if not name:
            return self._null_column().repeat(1, len(positions))
        return self._states[self._fill(text, name)][list(positions)].T.double()

    def _null_column(self) -> Tensor:
        if "" not in self._states:
            self._states[""] = self._encoder.encode([""])[0]
        empty = self._states[""].double()
        column = {"bos": empty[0], "eot": empty[1], "pad_mean": empty[2:].mean(dim=0)}[self._null]
        return column[:, None]
