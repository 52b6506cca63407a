"""PrototypeGuard: steers a picture away from the prototype that its prompt is closest to.

Prototype-Guided Concept Erasure (arXiv 2603.08271), methods.md chapter 4. Beside the paper's rule a
triggered prompt's states may be blended with a target's: pushed away alone, a model that knows nothing
between its concepts draws mush.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from editforge.ground.errors import EditError, HubError, PackageError
from editforge.ground.files import read_header, read_tensors, write_safetensors
from editforge.ground.places import is_hub_id
from editforge.guards.bank import Facts, check_shapes, read_facts
from editforge.guards.core import Guard, check_encoders
from editforge.guards.gate import scores
from editforge.guards.push import masked
from editforge.guards.words import Added, Ask, Moment, Quiet, Reading, Speaks, Texts

_PROVENANCE = "editforge_provenance"


@dataclass(frozen=True, kw_only=True, eq=False)
class PrototypeGuard(Guard):
    """A bank of prototypes, and the guard that it makes of a pipeline.

        guard = PrototypeGuard.from_pretrained("user/sd1-weapon-erased-bank")
        guard.attach(pipe)

    Args:
        tensors: see `guards.bank.check_shapes`.
        facts: see `guards.bank.Facts`.
    """

    file: ClassVar[str] = "bank.safetensors"
    header: ClassVar[str] = "editforge_bank"

    tensors: Mapping[str, Tensor]
    facts: Facts

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise EditError(
                "this is no strength of a guard", got=self.strength, allowed="numbers from 0 on"
            )

    @classmethod
    def from_pretrained(
        cls, place: str | os.PathLike[str], *, revision: str | None = None, token: Any = None
    ) -> Self:
        """Read a bank.

        Args:
            place: `bank.safetensors`, a folder that holds it, or a Hub repository.
            revision: of a Hub repository.
            token: as `huggingface_hub` takes it; None: the stored login.

        Raises:
            PackageError: nothing there, a damaged or hostile file. HubError: no such repository.
        """
        path = Path(place).expanduser()
        if path.is_dir():
            path = next((path / sub for sub in _WITHIN if (path / sub).is_file()), path / cls.file)
        if is_hub_id(str(place)) and not path.exists():
            path = _downloaded(str(place), cls.file, revision, token)
        if not path.is_file():
            raise PackageError(
                "no bank here",
                got=str(place),
                allowed=f"{cls.file}, a run or a package that holds it, or OWNER/NAME on the Hub",
                next="editforge guard build CONCEPT",
            )
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; nothing of it is believed unchecked.

        Raises:
            PackageError: damaged, not finite, of another kind, a number that no guard may have.
        """
        metadata, table = read_header(path)
        if cls.header not in metadata:
            raise PackageError(f"{path.name} is no bank of prototypes")
        facts = read_facts(metadata[cls.header], path.name)
        tensors = read_tensors(path, table=table)
        check_shapes(tensors, facts, path.name)
        try:
            strength, provenance = json.loads(metadata.get(_PROVENANCE, "[1.0, {}]"))
            good = isinstance(provenance, dict) and 0 <= float(strength) < math.inf
        except (ValueError, TypeError, OverflowError, RecursionError):
            good = False
        if not good:
            raise PackageError(f"{path.name} does not say how strong it is, and where it is from")
        return cls(tensors=tensors, facts=facts, strength=float(strength), provenance=provenance)

    def save(self, path: Path) -> None:
        """Write one safetensors file: vectors and numbers, no prompt and no picture."""
        provenance = json.dumps([self.strength, dict(self.provenance)], sort_keys=True)
        metadata = {
            self.header: json.dumps(self.facts.model_dump(mode="json"), sort_keys=True),
            _PROVENANCE: provenance,
        }
        write_safetensors(path, self.tensors, metadata)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PrototypeGuard)
            and self.facts == other.facts
            and self.strength == other.strength
            and dict(self.provenance) == dict(other.provenance)
            and set(self.tensors) == set(other.tensors)
            and all(torch.equal(value, other.tensors[key]) for key, value in self.tensors.items())
        )

    def described(self) -> dict[str, Any]:
        """What a card says: prototypes, guidance, and per concept rates and threshold."""
        return {
            "strength": self.strength,
            "prototypes": len(self.tensors["selector"]),
            "form": self.facts.form,
            "guidance": self.facts.guidance.model_dump(),
            "concepts": [concept.model_dump() for concept in self.facts.concepts],
        }

    def with_guidance(self, **changes: float) -> Self:
        """The same bank with other constants, for example `beta=10`."""
        body = {**self.facts.guidance.model_dump(), **changes}
        facts = Facts.model_validate({**self.facts.model_dump(), "guidance": body})
        return replace(self, facts=facts)

    def scores(self, states: Tensor) -> Tensor:
        """Score over threshold of each prompt and concept (n, concepts): from 1 on it acts.

        Args:
            states: (n, q, d) as the denoiser reads them.
        """
        return self._over(self._raw(states))

    def _over(self, own: Tensor) -> Tensor:
        """Of each concept the largest of its selectors' scores (n, selectors), over its threshold."""
        concept = self._concept[self.points]
        best = [own[:, concept == c].amax(dim=1) for c in range(len(self.facts.concepts))]
        limits = torch.tensor([c.threshold for c in self.facts.concepts], device=own.device)
        return torch.stack(best, dim=1) / limits

    def triggered(self, pipe: Any, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """Of each prompt the concepts that it triggers on a pipeline; none: it is left alone."""
        check_encoders(self.facts.encoder, pipe)
        speaks, names = Speaks(pipe), [concept.name for concept in self.facts.concepts]
        found = []
        for prompt in prompts:
            acts = (self.scores(speaks(prompt).states)[0] >= 1).tolist()
            found.append(tuple(name for name, on in zip(names, acts, strict=True) if on))
        return found

    def rule(self, pipe: Any) -> PrototypeRule:
        """The guard on one pipeline; its text encoders must be those that the bank was built with."""
        check_encoders(self.facts.encoder, pipe)
        return PrototypeRule(self, Speaks(pipe))

    @property
    def _concept(self) -> Tensor:
        return self.tensors["concept"].long()

    @property
    def points(self) -> Tensor:
        """Of each selector, those of names behind the clusters' own."""
        own = torch.arange(len(self.tensors["selector"]))
        names = self.tensors.get("name_prototype", own[:0])
        return torch.cat([own, names.long()])

    def _raw(self, states: Tensor) -> Tensor:
        # in float32: torch cannot join halves under autocast
        center, selector = self.tensors["center"].float(), self.tensors["selector"].float()
        names = self.tensors.get("name_selector", selector[:0]).float()
        selector = torch.cat([selector, names])
        if states.shape[-1] != selector.shape[1]:
            raise EditError(
                "this bank reads other text states",
                got=f"width {states.shape[-1]}",
                allowed=f"width {selector.shape[1]}",
            )
        return scores(states, center, selector)


class PrototypeRule:
    """A bank on one pipeline.

    Args:
        guard: the bank.
        speaks: reads the targets' texts.
    """

    def __init__(self, guard: PrototypeGuard, speaks: Speaks) -> None:
        self.guard, self._speaks = guard, speaks

    def read(self, prompts: Texts) -> Reading:
        """One winner for each concept that a prompt triggers."""
        guard = self.guard
        if guard.strength == 0:
            return Quiet()
        raw = guard._raw(prompts.states)
        acts = guard._over(raw)
        winners = []
        for index in range(len(guard.facts.concepts)):
            rows = (acts[:, index] >= 1).nonzero().flatten()
            own = (guard._concept[guard.points] == index).nonzero().flatten().to(raw.device)
            if len(rows):
                highest = own[raw[rows][:, own].argmax(dim=1)]
                winners.append(Winner(index, rows, guard.points.to(raw.device)[highest]))
        return _Steered(self, winners, acts) if winners else Quiet()

    def prototypes(self, which: Tensor, empty: Texts) -> Texts:
        """The conditioning of prototypes `which` (n,), put into that of n samples without a prompt."""
        guard, tensors = self.guard, self.guard.tensors
        pooled = empty.pooled
        if "pooled_prompt_embeds" in tensors and pooled is not None:
            pooled = tensors["pooled_prompt_embeds"].to(pooled)[which]
        if guard.facts.form == "prompt":
            return Texts(tensors["prompt_embeds"].to(empty.states)[which], pooled)
        states = empty.states.clone()
        position = tensors["position"].long().to(states.device)[which]
        if int(position.max()) >= states.shape[1]:
            raise EditError(
                "this bank is for a longer window", got=f"{states.shape[1]} positions of a prompt"
            )
        at = torch.arange(len(which), device=states.device)
        states[at, position] = tensors["token"].to(states)[which]
        return Texts(states, pooled)

    def target(self, index: int) -> Texts | None:
        """What concept `index` becomes, or None."""
        text = self.guard.facts.concepts[index].instead
        return None if text is None else self._speaks(text)


@dataclass(frozen=True)
class Winner:
    """Of one concept the samples that it acts on (n,), and the prototype nearest to each (n,)."""

    concept: int
    rows: Tensor
    prototype: Tensor


class _Steered(Quiet):
    """Prompts that were triggered."""

    def __init__(self, rule: PrototypeRule, winners: Sequence[Winner], acts: Tensor) -> None:
        self._rule, self._winners, self._acts = rule, winners, acts
        strength, facts = rule.guard.strength, rule.guard.facts
        self._guidance = facts.guidance
        self._beta = facts.guidance.beta * strength
        self._blend = min(1.0, facts.guidance.blend * strength)

    def conditions(self, given: Texts) -> Texts:
        """(1 - blend) H + blend H(target), of several concepts that of the highest score."""
        if not self._blend:
            return given
        highest, result = self._acts.argmax(dim=1), given
        for winner in self._winners:
            target = self._rule.target(winner.concept)
            rows = winner.rows[highest[winner.rows] == winner.concept]
            if target is not None and len(rows):
                result = result.with_rows(rows, given.at(rows).toward(target, self._blend))
        return result

    def asks(self, moment: Moment, empty: Texts) -> Sequence[Ask]:
        """eps(z, p) of each winner, inside the window."""
        if not self._beta or not moment.within(self._guidance.window):
            return ()
        found = []
        for winner in self._winners:
            texts = self._rule.prototypes(winner.prototype, empty.at(winner.rows))
            found.append(Ask(winner.rows, texts))
        return found

    def adds(
        self, moment: Moment, plain: Tensor, idle: Tensor, drawn: Tensor, told: Sequence[Tensor]
    ) -> Sequence[Added]:
        """-beta m (eps(z, p) - eps(z)), where m is 1 if the difference exceeds `mask`."""
        found = []
        for winner, answer in zip(self._winners, told, strict=True):
            away = masked(answer - idle[winner.rows], self._guidance.mask)
            found.append(Added(winner.rows, -self._beta * away, self._guidance.rescale))
        return found


_WITHIN = (
    "bank.safetensors",
    "guide/bank.safetensors",
    "bank/bank.safetensors",
    "package/bank/bank.safetensors",
)


def _downloaded(repo: str, file: str, revision: str | None, token: Any) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, file, revision=revision, token=token))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise HubError(
            f"no bank can be had from {repo}",
            got=" ".join(str(error).split())[:200],
            allowed=f"a Hub repository with {file}, its folder, or the file itself",
        ) from None
