"""Recipe: what the user asked for, one frozen model. Everything impossible in itself is refused here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from editforge.artifacts.concepts import Concept, Name
from editforge.artifacts.eraser import Eraser
from editforge.families.config import ModelConfig
from editforge.ground.disk import dump_yaml
from editforge.ground.errors import RecipeError, did_you_mean
from editforge.ground.names import fold
from editforge.recipe import registry
from editforge.recipe.contract import StageConfig
from editforge.recipe.line import LINE, Step

NO_STAGE = "a stage is a mapping"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _stage(stage: str, *, needed: bool = False) -> BeforeValidator:
    """Validate `{use: NAME, ...}` with the config class that NAME registered."""

    def validate(value: Any) -> Any:
        if (value is None and not needed) or isinstance(value, StageConfig):
            return value
        if not isinstance(value, Mapping) or not isinstance(value.get("use"), str):
            known = ", ".join(registry.names(stage))
            raise ValueError(f"{NO_STAGE} with `use`, one of {known}")
        config: type[StageConfig] = registry.get(stage, value["use"]).config
        return config.model_validate(dict(value))

    return BeforeValidator(validate)


def _listed(value: Any) -> Any:
    return value if value is None or isinstance(value, (list, tuple)) else [value]


def _registered(name: str) -> str:
    known = registry.known(registry.EXPORT)
    if name not in known:
        said = did_you_mean(f"'{name}'", [f"'{one}'" for one in known])
        raise PydanticCustomError("export", "{allowed}", {"allowed": said})
    return name


Export = Annotated[str, AfterValidator(_registered)]
Mine = Annotated[SerializeAsAny[StageConfig], _stage("mine", needed=True)]


class EvaluateConfig(_Section):
    """How the result is judged."""

    tier: Literal["gate"] = Field("gate", description="What is measured; see docs/benchmark.md.")
    judge: str | None = Field(
        "family",
        description="family, objects, styles, nudity, nudenet (AGPL-3.0), faces, a CLIP folder or Hub "
        "id (OWNER/NAME, OWNER/NAME@REVISION), several with commas; or null: drift only.",
    )


class PackageConfig(_Section):
    """What is written for others to load."""

    export: tuple[Export, ...] = Field(
        ("lora",), min_length=1, description="One repository folder each."
    )
    dtype: Literal["base", "float32", "float16", "bfloat16"] = Field(
        "base", description="Of full checkpoints; LoRA factors are float32."
    )


class Recipe(_Section):
    """A resolved recipe: every default written out. Saved as the run's recipe.yaml."""

    method: str = Field("default", description="A name in pipelines/, recorded for the card.")
    preset: str = Field("editforge", description="A named block of values in the method's file.")
    model: ModelConfig = ModelConfig()
    concepts: tuple[Concept, ...] = Field(min_length=1)
    preserve: Literal["auto"] | tuple[Name, ...] = Field(
        "auto", description="Must not move; `auto`, alone or in a list: what lies nearest."
    )
    seed: int = Field(0, ge=0, lt=2**63)
    strength: float = Field(1.0, description="1 is the method's own edit, 0 the base bit for bit.")
    continue_from: str | None = Field(
        None,
        description="A run or solve.safetensors of an earlier edit, solved jointly with this one.",
    )
    mine: Annotated[tuple[Mine, ...] | None, BeforeValidator(_listed)] = None
    target: Annotated[SerializeAsAny[StageConfig] | None, _stage("target")]
    edit: Annotated[SerializeAsAny[StageConfig] | None, _stage("edit")]
    align: Annotated[SerializeAsAny[StageConfig] | None, _stage("align")] = None
    guide: Annotated[SerializeAsAny[StageConfig] | None, _stage("guide")] = None
    evaluate: EvaluateConfig | None = EvaluateConfig()
    package: PackageConfig = PackageConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        seen: dict[str, str] = {}
        for concept in self.concepts:
            for name in concept.names:
                if fold(name) in seen:
                    raise ValueError(f"{name!r} is erased twice ({seen[fold(name)]!r})")
                seen[fold(name)] = concept.name
        if self.preserve != "auto":
            both = [word for word in self.preserve if fold(word) in seen]
            if both:
                raise ValueError(f"{both[0]!r} is both erased and preserved")
        self._check_erasing()
        self._check_exports()
        return self

    @property
    def erasing(self) -> tuple[Step, ...]:
        """The stages that erase, in order; the last makes the eraser that is judged and packaged."""
        return tuple(step for step in LINE if step.erases and step.config(self) is not None)

    def eraser_class(self, step: Step) -> type[Eraser]:
        """What one of them makes."""
        own: Any = step.artifact_class()
        kind: type[Eraser] = own or registry.get(step.name, step.config(self).use).returns
        return kind

    def _check_erasing(self) -> None:
        """`edit` and/or `align` change weights; `guide` steers sampling, and stands alone."""
        weights = [key for key in ("edit", "align") if getattr(self, key) is not None]
        if not weights and self.guide is None:
            raise ValueError("edit and align are both null: nothing would be erased")
        if weights and self.target is None:
            raise RecipeError(
                f"target: {NO_STAGE}",
                got=f"null beside {weights[0]}; only a recipe that guides has none",
                next="editforge list stages",
            )
        if weights and self.guide is not None:
            raise ValueError(f"guide changes no weight and stands alone: set {weights[0]} to null")
        if self.guide is not None and self.continue_from is not None:
            raise ValueError("continue_from joins weight changes, and guide makes none")

    def _check_exports(self) -> None:
        """Each export takes what the last erasing stage makes."""
        made = self.eraser_class(self.erasing[-1])
        if found := registry.misfit(made, self.package.export):
            name, accepted, takers = found
            raise RecipeError(
                f"the export {name} does not take what this recipe makes",
                got=made.__name__,
                allowed=accepted,
                next=f"--export, one of: {takers}" if takers else "docs/extending.md",
            )

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A recipe without a guide reads as it did before there were guides: its digest stays."""
        body: dict[str, Any] = handler(self)
        if body.get("guide") is None:
            body.pop("guide", None)
        return body

    def to_yaml(self) -> str:
        """The recipe as text that loads to itself."""
        return dump_yaml(self.model_dump(mode="json"))
