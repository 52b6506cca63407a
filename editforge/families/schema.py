"""A family: where text enters one architecture, as data.

A family YAML names modules, widths and counts. A checkpoint with another number of matches, as
distilled ones have, is believed only if its file holds exactly the weights that its own config
promises: neither a library's update nor a damaged file quietly halves an edit. Rules that cannot be
data are functions named here by a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from editforge.ground.disk import read_yaml
from editforge.ground.errors import FamilyError, did_you_mean

Export = Literal["lora", "unet", "pipeline", "single-file"]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Match(_Data):
    """What a model must be to belong to this family."""

    pipeline: str = Field(description="Class name in model_index.json.")
    also: tuple[str, ...] = Field((), description="Other classes made of the same parts.")
    text_width: int = Field(gt=0, description="Width of the text states the denoiser reads.")


class ModulePattern(_Data):
    """Which denoiser modules form one group, and how many the published checkpoints have."""

    pattern: str
    expect: int = Field(gt=0)


class TextSlice(_Data):
    """Which columns of the text states come from which encoder.

    `penultimate` with the final norm is what apps call clip skip 2; SDXL reads it without the norm.
    """

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
    single_file: tuple[str, ...] = Field(
        ("epsilon",), description="Prediction types that readers of its single files understand."
    )
    beside: tuple[int, ...] = Field(
        (0,), description="Channels read beside the noise: 4 are a picture, 5 a picture and a mask."
    )
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
        normed = "XL" not in self.match.pipeline
        for part in self.text:
            if part.final_norm != normed or (part.states == "last" and not normed):
                told = "last or penultimate, with final_norm" if normed else "penultimate, without"
                raise ValueError(
                    f"{self.match.pipeline} gives other states of {part.encoder}: {told} it"
                )
        return self

    @property
    def text_width(self) -> int:
        """Width of the text states: the sum of the encoders' slices."""
        return sum(part.width for part in self.text)

    def clip_skip(self, asked: int | None) -> int | None:
        """Which layer of the text encoder is read, counted from the last as apps do; None: the last.

        Args:
            asked: 1 is the last; None: as the family says.

        Raises:
            FamilyError: a family whose pipeline has no choice, or no such layer.
        """
        own = (
            2 if all(part.states == "penultimate" and part.final_norm for part in self.text) else 1
        )
        if asked is None:
            return own if own > 1 else None
        if asked < 1:
            raise FamilyError("no such layer", got=f"clip_skip {asked}", allowed="1 or more; 2")
        if asked > 1 and not all(part.final_norm for part in self.text):
            raise FamilyError(
                f"family {self.name} has no clip skip",
                got=f"clip_skip {asked}",
                allowed="none: its pipeline reads the last layer but one, whatever an app says",
                next="leave out model.clip_skip",
            )
        return asked if asked > 1 else None

    def select(
        self, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any] | None = None
    ) -> dict[str, list[str]]:
        """Module paths by group, from the denoiser's weight names and shapes.

        Args:
            shapes: parameter name (`down_blocks.0...to_k.weight`) to shape.
            config: the denoiser's own: decides where a pattern matches another number of modules than
                the published checkpoints have. None: that number alone will do.

        Raises:
            FamilyError: another number than published, and not what the config promises; no module at
                all; or another width.
        """
        paths = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]
        found = {
            group: [path for path in paths if fnmatchcase(path, rule.pattern)]
            for group, rule in self.modules.items()
        }
        if not self.published(found):
            self._check_own(found, paths, shapes, config)
        for path in (path for group in found.values() for path in group):
            shape = shapes[f"{path}.weight"]
            if len(shape) != 2 or shape[1] != self.text_width:
                raise FamilyError(
                    f"{path} reads another width than family {self.name}",
                    got=str(tuple(shape)),
                    allowed=f"(out, {self.text_width})",
                )
        return found

    def published(self, found: Mapping[str, list[str]]) -> bool:
        """Whether a model has as many modules of each group as the family's published checkpoints."""
        return all(len(found[group]) == rule.expect for group, rule in self.modules.items())

    def _check_own(
        self,
        found: Mapping[str, list[str]],
        paths: list[str],
        shapes: Mapping[str, tuple[int, ...]],
        config: Mapping[str, Any] | None,
    ) -> None:
        from editforge.families.promised import promised

        group, rule = next((g, r) for g, r in self.modules.items() if len(found[g]) != r.expect)
        if config is None or not found[group]:
            endings = sorted({".".join(path.split(".")[-2:]) for path in paths if "attn" in path})
            raise FamilyError(
                f"{len(found[group])} modules of this model match {rule.pattern!r}, "
                f"family {self.name} has {rule.expect}",
                got=f"{len(paths)} weights",
                allowed=did_you_mean(rule.pattern.lstrip("*."), endings),
                next="the model is another architecture or incomplete: editforge list families",
            )
        names = promised(config)
        lost, added = sorted(names - set(shapes)), sorted(set(shapes) - names)
        if lost or added:
            what = f"lacks {len(lost)}" if lost else f"has {len(added)} more"
            raise FamilyError(
                f"this denoiser {what} of the weights that its own config promises",
                got=", ".join((lost or added)[:3]),
                allowed=f"{len(names)} weights",
                next="the download is incomplete, or config.json belongs to another model",
            )


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
