"""Prototypes: the modes of a concept in a model's own geometry, for whatever erases by them.

`prototypes.safetensors` holds the vectors, `clusters.yaml` and one picture a concept say what a person
wants to know before trusting them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from editforge.artifacts.concepts import Name
from editforge.ground.disk import dump_yaml, write_atomic, write_text
from editforge.ground.errors import PackageError
from editforge.ground.files import read_header, read_tensors, write_safetensors

FILE = "prototypes.safetensors"
_HEADER = "editforge_prototypes"
_SAID = """\
# Clusters of the pictures that the model draws for a concept. Look at clusters-*.png beside this file.
# To leave some out: --set guide.without=[NUMBER, ...] and run again.
#   share: of all differences between pictures with and without the concept
#   cosine: of the text-side prototype with the cluster's center; near 1: it says what the cluster shows
#   words: what lies nearest to the center, by CLIP
#   coverage: by number of clusters, the mean cosine of held-out differences with the nearest center
#   names: that the gate knows one by one; see neighbors.yaml for those that are members
"""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Cluster(_Data):
    """One cluster: its number in the bank, its size, and words for a person."""

    number: int = Field(ge=0)
    share: float = Field(ge=0, le=1)
    cosine: float
    words: dict[str, float] = {}


class Modes(_Data):
    """The clusters of one concept.

    Args:
        concept: its name.
        pairs: contrast pairs that were drawn.
        pictures: of each prompt of a pair.
        coverage: by number of clusters the mean cosine of held-out differences with the nearest.
        clusters: in order of their numbers.
        names: that have a selector of their own, in the order of `name_selector`.
    """

    concept: Name
    pairs: int
    pictures: int
    coverage: dict[int, float] = {}
    clusters: tuple[Cluster, ...] = ()
    names: tuple[Name, ...] = ()


class _Header(_Data):
    form: Literal["token", "prompt"]
    selector_model: str
    modes: tuple[Modes, ...]


@dataclass(frozen=True, eq=False)
class Prototypes:
    """Vectors of all concepts, (K, ...) in the order of `modes`.

    Args:
        tensors: `centroid` (K, w) in CLIP's space, `selector` (K, d) and `center` (d,) in that of
            text states; `token` (K, d) at `position` (K,), or `prompt_embeds` (K, q, d);
            `name_selector` (M, d) and `name_prototype` (M,) of the names that are listed.
        form: token or prompt.
        selector_model: sha256 of the CLIP.
        modes: one entry a concept.
        pictures: file name to PNG.
    """

    tensors: Mapping[str, Tensor]
    form: Literal["token", "prompt"]
    selector_model: str
    modes: tuple[Modes, ...]
    pictures: Mapping[str, bytes] = field(default_factory=dict)

    def of(self, concept: str) -> Modes | None:
        """The modes of one concept, or None."""
        return next((entry for entry in self.modes if entry.concept == concept), None)

    def rows_of(self, concept: str) -> slice:
        """Which rows of the vectors are one concept's, none if it has no clusters."""
        start = 0
        for entry in self.modes:
            if entry.concept == concept:
                return slice(start, start + len(entry.clusters))
            start += len(entry.clusters)
        return slice(start, start)

    def save(self, folder: Path) -> None:
        """Write vectors, clusters and pictures."""
        header = _Header(form=self.form, selector_model=self.selector_model, modes=self.modes)
        text = json.dumps(header.model_dump(mode="json"), sort_keys=True)
        write_safetensors(folder / FILE, self.tensors, {_HEADER: text})
        body = {"concepts": [entry.model_dump(mode="json") for entry in self.modes]}
        write_text(folder / "clusters.yaml", _SAID + dump_yaml(body))
        for name, data in sorted(self.pictures.items()):
            write_atomic(folder / name, partial(_write, data))

    @classmethod
    def load(cls, folder: Path) -> Prototypes | None:
        """Read what `save` wrote; None if there is nothing of the kind. Pictures are not read.

        Raises:
            PackageError: a damaged file.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        metadata, table = read_header(path)
        try:
            header = _Header.model_validate(json.loads(metadata.get(_HEADER, "")))
        except (json.JSONDecodeError, ValidationError):
            raise PackageError(
                f"{FILE} does not say what it holds", next="run mine again"
            ) from None
        tensors = read_tensors(path, table=table)
        K = sum(len(entry.clusters) for entry in header.modes)
        own = {name: value for name, value in tensors.items() if not name.startswith("name_")}
        short = [name for name, value in own.items() if name != "center" and len(value) != K]
        if short or "selector" not in tensors or "centroid" not in tensors:
            raise PackageError(f"{FILE} lacks vectors", got=", ".join(short) or "no selector")
        return cls(tensors, header.form, header.selector_model, header.modes)


def _write(data: bytes, file: Any) -> None:
    file.write(data)
