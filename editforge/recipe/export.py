"""The contract of an exporter: one form in which an eraser ships, as one Hub repository.

An exporter is one file with a class and `@register("export", NAME)`. It writes the weights, says who
takes them and how they are loaded; card, pictures, hashes and `reproduce/` are the package's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from editforge.artifacts.eraser import Eraser
from editforge.families.schema import Family


class Exportable(Protocol):
    """What decides which exports a base has."""

    @property
    def family(self) -> Family: ...  # noqa: D102
    @property
    def prediction_type(self) -> str: ...  # noqa: D102


class BaseModel(Exportable, Protocol):
    """A base model on disk, as `families.model.Model` has it."""

    @property
    def folder(self) -> Path: ...  # noqa: D102
    @property
    def variant(self) -> str | None: ...  # noqa: D102
    @property
    def label(self) -> str: ...  # noqa: D102
    @property
    def revision(self) -> str | None: ...  # noqa: D102
    @property
    def base_sha256(self) -> str: ...  # noqa: D102
    @property
    def license(self) -> str | None: ...  # noqa: D102
    @property
    def license_name(self) -> str | None: ...  # noqa: D102
    @property
    def license_link(self) -> str | None: ...  # noqa: D102
    @property
    def local(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class Written:
    """What an exporter wrote.

    Args:
        facts: the block `artifact` of `editforge.json`; its `weights` are paths below the folder, the
            one that is loaded first.
        notes: sentences for the user.
    """

    facts: dict[str, Any]
    notes: tuple[str, ...] = ()


class Exporter(ABC):
    """One form of shipping.

    Args:
        name: as it is registered, and the folder in a package.
        accepts: the erasers that it can write; a recipe that makes another is refused when it is read.
        relation: the Hub's `base_model_relation`.
        tags: of the card, behind `concept-erasure` and `editforge`; the family's own follows.
    """

    name: ClassVar[str]
    accepts: ClassVar[type]
    relation: ClassVar[str] = "adapter"
    tags: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def usage(self) -> str:
        """How the repository is loaded, as the Jinja text of the card's section; sees `facts`."""

    def check(self, model: Exportable) -> None:  # noqa: B027  (most have nothing to refuse)
        """Refuse a base that cannot have this export.

        Raises:
            PackageError: why, and which others there are.
        """

    @abstractmethod
    def write(self, model: BaseModel, eraser: Any, folder: Path, title: str, dtype: str) -> Written:
        """Write the weight files into `folder`; refuse, before anything is written, what does not fit.

        Args:
            model: the base.
            eraser: one of `accepts`.
            folder: of the repository, empty.
            title: release name, for file names and headers.
            dtype: base, float32, float16 or bfloat16; of full checkpoints.
        """

    @abstractmethod
    def applied(self, model: Any, place: Path, pipe: Any) -> Any:
        """The erasing pipeline as a user of the repository loads it; a context manager.

        Args:
            model: the base, open.
            place: the weight file or the folder.
            pipe: the base's pipeline, which stays as it is: precision and device are taken from it.
        """

    def copied(self, family: Family, path: str) -> bool:
        """Whether a file, by its path in the repository, is the base's and not ours."""
        return False

    def bytes(self, model: Any, recipe: Any, lora: int) -> int:
        """Bytes of the weight files, for `--dry-run`.

        Args:
            model: the `Outline` of the base.
            recipe: resolved.
            lora: bytes of the change as factors.
        """
        return lora


def accepts(exporter: type[Exporter], eraser: type) -> bool:
    """Whether an exporter can write erasers of a class; `Eraser` itself stands for all."""
    return exporter.accepts is Eraser or issubclass(eraser, exporter.accepts)
