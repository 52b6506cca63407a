"""A family: where text enters one architecture, as data.

A family YAML names modules, widths and counts; any other number of matches is an error, so no library
update quietly halves an edit. Rules that cannot be data are functions named here by a word.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from editforge.ground.disk import read_yaml
from editforge.ground.errors import FamilyError, did_you_mean

Export = Literal["lora", "unet", "pipeline", "single-file"]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Match(_Data):
    """What a model must be to belong to this family."""

    pipeline: str = Field(description="Class name in model_index.json.")
    text_width: int = Field(gt=0, description="Width of the text states the denoiser reads.")


class ModulePattern(_Data):
    """Which denoiser modules form one group, and how many there must be."""

    pattern: str
    expect: int = Field(gt=0)


class TextSlice(_Data):
    """Which columns of the text states come from which encoder."""

    encoder: str
    tokenizer: str
    width: int = Field(gt=0)
    states: Literal["last", "penultimate"] = "last"
    final_norm: bool = True


class SamplerDefaults(_Data):
    """How the family's pictures are drawn when they are judged."""

    steps: int = 25
    guidance: float = 7.5
    size: int = 512
    batch: int = Field(8, description="Pictures at once; changes speed and memory alone.")


class Family(_Data):
    """One architecture. `match` decides membership, `modules` what may be edited."""

    name: str
    title: str
    match: Match
    text: tuple[TextSlice, ...] = Field(min_length=1)
    denoiser: str = "unet"
    modules: dict[str, ModulePattern] = Field(min_length=1)
    exports: tuple[Export, ...]
    kohya: dict[str, str] | None = Field(
        None, description="Prediction type to ss_base_model_version; null: no kohya file."
    )
    modelspec: dict[str, str] | None = Field(
        None, description="Prediction type to ModelSpec architecture, without `/lora`; null: none."
    )
    predictions: tuple[str, ...] = ("epsilon", "v_prediction")
    tokens: int = 77
    sampler: SamplerDefaults = SamplerDefaults()
    words: Literal["emoji", "kinds"] | None = Field(
        None,
        description="kinds: our lists by kind; emoji: the embedded model's; null: the tokenizer's.",
    )
    judge: str | None = Field(None, description="Judge that knows this family; null: none.")
    templates: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="Per kind, with {n} the name, {a} the name with article."
    )

    @model_validator(mode="after")
    def _adds_up(self) -> Family:
        if self.match.text_width != self.text_width:
            raise ValueError(
                f"match.text_width is {self.match.text_width}, the text slices add up to "
                f"{self.text_width}"
            )
        return self

    @property
    def text_width(self) -> int:
        """Width of the text states: the sum of the encoders' slices."""
        return sum(part.width for part in self.text)

    def select(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, list[str]]:
        """Module paths by group, from the denoiser's weight names and shapes.

        Args:
            shapes: parameter name (`down_blocks.0...to_k.weight`) to shape.

        Raises:
            FamilyError: a pattern matches another number of modules, or another width.
        """
        paths = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]
        found: dict[str, list[str]] = {}
        for group, rule in self.modules.items():
            found[group] = [path for path in paths if fnmatchcase(path, rule.pattern)]
            if len(found[group]) != rule.expect:
                endings = sorted(
                    {".".join(path.split(".")[-2:]) for path in paths if "attn" in path}
                )
                raise FamilyError(
                    f"{len(found[group])} modules of this model match {rule.pattern!r}, "
                    f"family {self.name} has {rule.expect}",
                    got=f"{len(paths)} weights",
                    allowed=did_you_mean(rule.pattern.lstrip("*."), endings),
                    next="the model is another architecture or incomplete: editforge list families",
                )
            for path in found[group]:
                shape = shapes[f"{path}.weight"]
                if len(shape) != 2 or shape[1] != self.text_width:
                    raise FamilyError(
                        f"{path} reads another width than family {self.name}",
                        got=str(tuple(shape)),
                        allowed=f"(out, {self.text_width})",
                    )
        return found


def load_family(name: str) -> Family:
    """A shipped family by name, or one of your own by the path of its YAML file.

    Raises:
        FamilyError: no such family, or a file that does not describe one.
    """
    shipped = shipped_families()
    path = shipped.get(name) or (Path(name) if name.endswith((".yaml", ".yml")) else None)
    if path is None:
        raise FamilyError(
            f"no family {name!r}",
            allowed=did_you_mean(name, shipped),
            next="editforge list families; a family of your own is a file that ends in .yaml",
        )
    try:
        return Family.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FamilyError(f"{path.name} is not a family", got=f"{where}: {first['msg']}") from None


def shipped_families() -> dict[str, Path]:
    """Name to YAML of the families this package knows; imports no torch."""
    folder = Path(__file__).parent
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
