"""Graph: concepts, what erasing each does to the others, what follows from it; saves itself as JSON."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, ValidationError

from editforge.artifacts.report import Estimate, Number
from editforge.evaluate import metrics
from editforge.families.schema import Family
from editforge.families.vocabulary import group_of
from editforge.graph.find import find
from editforge.graph.findings import Findings, Frozen
from editforge.graph.outcomes import Outcomes
from editforge.graph.request import Request
from editforge.graph.table import UNRELIABLE, Table, edges
from editforge.graph.text import Text
from editforge.ground.disk import read_json, write_json
from editforge.ground.errors import PackageError

FILE = "graph.json"
_LIBRARIES = ("editforge", "torch", "diffusers", "transformers", "numpy")


class Node(Frozen):
    """A concept.

    Args:
        name: of the concept.
        group: as the manifest has it; None: unknown.
        base: share of the base's pictures that show it to all judges: G_0, Wilson interval.
        unreliable: G_0 is under 0.8: what it loses says little.
        becomes: what its own erasure sends it to; "" is nothing, None: the recipe has no targets.
        drawn: share of the base's pictures that show it to any judge.
        erased: the same after its own erasure.
        incoming: what it loses on average when another is erased.
        outgoing: what the others lose on average when it is.
    """

    name: str
    group: str | None
    base: Estimate
    unreliable: bool
    becomes: str | None
    drawn: Estimate
    erased: Estimate
    incoming: Estimate
    outgoing: Estimate


class Edge(Frozen):
    """What `measured` loses when `erased` goes: Delta = G_0 - G_e, paired, 95 % interval.

    `similarity`, `leak` and `unheld` are what text alone says of the two.
    """

    erased: str
    measured: str
    damage: Number
    lo: Number
    hi: Number
    similarity: Number
    leak: Number
    unheld: Number

    @property
    def clear(self) -> bool:
        """Whether the interval lies above 0."""
        return self.lo > 0


class Graph(Frozen):
    """The whole result. No clock, path, user or host is part of it: the same request, the same bytes."""

    model_config = ConfigDict(populate_by_name=True)

    graph_schema: Literal["editforge.graph/1"] = Field("editforge.graph/1", alias="schema")
    recipe: dict[str, Any]
    family: str
    base_model: str
    base_sha256: str
    images: int
    seed: int
    first_seed: int
    sampler: dict[str, Any]
    device: str
    dtype: str
    judges: tuple[dict[str, Any], ...]
    versions: dict[str, str]
    nodes: tuple[Node, ...] = Field(min_length=2)
    edges: tuple[Edge, ...]
    one_thing: tuple[tuple[str, str], ...]
    findings: Findings

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts, in order."""
        return tuple(node.name for node in self.nodes)

    def matrix(self, field: str = "damage") -> NDArray[np.float64]:
        """(erased, measured) of one number of the edges; NaN where there is no edge."""
        at = {name: index for index, name in enumerate(self.names)}
        found = np.full((len(at), len(at)), np.nan)
        for edge in self.edges:
            found[at[edge.erased], at[edge.measured]] = getattr(edge, field)
        return found

    def save(self, folder: Path) -> None:
        """Write `graph.json`."""
        write_json(folder / FILE, self.model_dump(mode="json", by_alias=True))

    @classmethod
    def load(cls, folder: Path) -> Graph:
        """Read it back.

        Raises:
            PackageError: another schema, or a damaged file.
        """
        raw = read_json(folder / FILE)
        if not isinstance(raw, dict) or raw.get("schema") != "editforge.graph/1":
            raise PackageError(
                f"{FILE} has another schema",
                got=str(raw.get("schema") if isinstance(raw, dict) else type(raw).__name__)[:80],
                allowed="editforge.graph/1",
                next="editforge graph --help",
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise PackageError(
                f"{FILE} is damaged",
                got="; ".join(str(error).splitlines()[:3]),
                next="measure again: the same editforge graph command",
            ) from None


def graph_of(request: Request, outcomes: Outcomes, text: Text, model: Any) -> Graph:
    """Estimates and findings of what was seen."""
    table, seed = table_of(request, outcomes, text, model.family), request.recipe.seed
    damages = edges(table, seed)
    names, facts = table.names, request.facts
    nodes = []
    for index, (name, seen) in enumerate(zip(names, outcomes.edited, strict=True)):
        base = metrics.rate(outcomes.base.kept[index])
        nodes.append(
            Node(
                name=name,
                group=table.groups[index],
                base=base,
                unreliable=(base.value or 0) < UNRELIABLE,
                becomes=seen.becomes,
                drawn=metrics.rate(outcomes.base.present[index]),
                erased=metrics.rate(seen.present[index]),
                incoming=table.incoming(index, seed),
                outgoing=table.outgoing(index, seed),
            )
        )
    found = [
        Edge(
            erased=names[e],
            measured=names[v],
            damage=damage.value,
            lo=damage.lo,
            hi=damage.hi,
            similarity=text.similarity[e, v],
            leak=text.leak[e, v],
            unheld=text.unheld[e, v],
        )
        for (e, v), damage in damages.items()
        if damage.value is not None
    ]
    twins = [(names[e], names[v]) for e, v in np.argwhere(np.triu(table.same, 1))]
    return Graph(
        recipe=facts["recipe"],
        family=model.family.name,
        base_model=model.label,
        base_sha256=model.base_sha256,
        images=request.images,
        seed=seed,
        first_seed=request.prompts[0].seeds[0],
        sampler=facts["sampler"],
        device=facts["device"],
        dtype=facts["dtype"],
        judges=tuple(facts["judges"]),
        versions={name: importlib.metadata.version(name) for name in _LIBRARIES},
        nodes=tuple(nodes),
        edges=tuple(found),
        one_thing=tuple(twins),
        findings=find(table, damages, seed),
    )


def table_of(request: Request, outcomes: Outcomes, text: Text, family: Family) -> Table:
    """Outcomes and text side by side, with what the judge cannot tell apart."""
    labels, names = request.labels, outcomes.names
    shared = [[bool({*labels[a]} & {*labels[b]}) for b in names] for a in names]
    return Table(
        names=names,
        base=outcomes.base.kept.astype(float),
        lost=outcomes.lost,
        same=np.array(shared),
        similarity=text.similarity,
        leak=text.leak,
        unheld=text.unheld,
        groups=[group_of(family, name) for name in names],
    )
