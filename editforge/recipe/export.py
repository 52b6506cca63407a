"""The contract of an exporter: one form in which an eraser ships, as one Hub repository.

An exporter is one file with a class and `@register("export", NAME)`. It writes the weights, says who
takes them and how they are loaded; card, pictures, hashes and `reproduce/` are the package's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from editforge.artifacts.eraser import Eraser
from editforge.families.schema import Family

if TYPE_CHECKING:
    from editforge.families.model import Model
    from editforge.families.outline import Outline


class Exportable(Protocol):
    """What decides which exports a base has."""

    @property
    def family(self) -> Family: ...  # noqa: D102
    @property
    def prediction_type(self) -> str: ...  # noqa: D102
    @property
    def standard(self) -> bool: ...  # noqa: D102
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...  # noqa: D102


class BaseModel(Exportable, Protocol):
    """A base model on disk, as `families.model.Model` has it."""

    @property
    def folder(self) -> Path: ...  # noqa: D102
    @property
    def pipeline_class(self) -> str: ...  # noqa: D102
    @property
    def variant(self) -> str | None: ...  # noqa: D102
    @property
    def label(self) -> str: ...  # noqa: D102
    @property
    def revision(self) -> str | None: ...  # noqa: D102
    @property
    def base_sha256(self) -> str: ...  # noqa: D102
    @property
    def base_sketch(self) -> Mapping[str, Any]: ...  # noqa: D102
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
        tags: of the card, behind `concept-erasure` and `editforge`; the family's own follows, and
            those of the kind `template:...` stand behind it.
        is_folder: a user loads the folder, not one file of it.
        holds_dense: it can write changes that are no low-rank factors.
    """

    name: ClassVar[str]
    accepts: ClassVar[type]
    relation: ClassVar[str] = "adapter"
    tags: ClassVar[tuple[str, ...]] = ()
    is_folder: ClassVar[bool] = False
    holds_dense: ClassVar[bool] = True

    @abstractmethod
    def usage(self) -> str:
        """How the repository is loaded, as the Jinja text of the card's section; sees `facts`."""

    def check(self, model: Exportable) -> None:  # noqa: B027  (most have nothing to refuse)
        """Refuse a base that cannot have this export.

        Raises:
            PackageError: why, and which others there are.
        """

    def check_eraser(self, model: BaseModel, eraser: Any) -> None:  # noqa: B027
        """Refuse an eraser that the base cannot take; asked of every export before one is written.

        Raises:
            PackageError: what does not fit.
        """

    def check_shipped(self, model: Model, place: Path) -> None:  # noqa: B027
        """Refuse a file or folder that the base cannot take, before it is drawn with.

        Loaders skip keys that they do not know, or fill in random ones.

        Raises:
            PackageError: what does not fit.
        """

    @abstractmethod
    def write(self, model: BaseModel, eraser: Any, folder: Path, title: str, dtype: str) -> Written:
        """Write the weight files into `folder`.

        Args:
            model: the base.
            eraser: one of `accepts`.
            folder: of the repository; it is not there yet.
            title: release name, for file names and headers.
            dtype: base, float32, float16 or bfloat16; of full checkpoints.
        """

    @abstractmethod
    def applied(self, model: Model, place: Path, pipe: Any) -> AbstractContextManager[Any]:
        """The erasing pipeline as a user of the repository loads it.

        Args:
            model: the base, open.
            place: the weight file; the folder, if the form is one.
            pipe: the base's pipeline, which stays as it is: precision and device are taken from it.
        """

    def copied(self, family: Family, path: str) -> bool:
        """Whether a file, by its path in the repository, is the base's and not ours."""
        return False

    def bytes(self, model: Outline, dtype: str, size: int) -> int:
        """Bytes of the weight files, for `--dry-run`.

        Args:
            model: of the base.
            dtype: of full checkpoints.
            size: bytes of the eraser itself, at most.
        """
        return size


def accepts(exporter: type[Exporter], eraser: type) -> bool:
    """Whether an exporter can write erasers of a class; `Eraser` itself stands for all."""
    return exporter.accepts is Eraser or issubclass(eraser, exporter.accepts)
