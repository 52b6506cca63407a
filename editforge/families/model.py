"""Model: one base model, opened as far as each stage needs it and no further.

A closed form reads the text encoder and a few small matrices, so the denoiser is never built for it:
`weight` reads one map from the file, `encoder` builds the text side alone, `pipeline` the whole model
for those who draw pictures. Nothing here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from editforge.families.encode import TextEncoder, skip_layers
from editforge.families.fits import check_parts, detect, in_eight_bits
from editforge.families.identity import Identity, Piece, Sketch, components, identify, plain_name
from editforge.families.outline import reader
from editforge.families.sampling import Sampler, own_sampler
from editforge.families.schema import Family, load_family
from editforge.ground.disk import read_json, sha256_file, sha256_json
from editforge.ground.errors import FamilyError
from editforge.ground.files import TensorInfo, check_finite, read_header, read_tensors


@dataclass(frozen=True)
class Origin:
    """Where a base came from, in words that may be published: never a local path.

    Args:
        label: a Hub id, or `local:` and a digest.
        revision: the Hub's commit.
        license: as the base's own card declares it, never guessed; so are the next two.
        license_name: of a license that is `other`.
        license_link: a file beside the base's weights, or a URL.
        local: the files are the user's own, whatever the label says: their configs are private.
    """

    label: str
    revision: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    local: bool = False


class Described(Protocol):
    """What is known of a model before a weight is read: from its configs, tokenizers and headers."""

    @property
    def family(self) -> Family: ...  # noqa: D102
    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...  # noqa: D102
    @property
    def prediction_type(self) -> str: ...  # noqa: D102
    @property
    def reader(self) -> TextEncoder: ...  # noqa: D102
    @property
    def standard(self) -> bool: ...  # noqa: D102


class TextModel(Protocol):
    """What the stages read of a model: on disk (`Model`) or in memory (`LiveModel`)."""

    family: Family
    label: str
    revision: str | None
    device: str

    @property
    def paths(self) -> list[str]: ...  # noqa: D102
    @property
    def encoder(self) -> TextEncoder: ...  # noqa: D102
    @property
    def base_sha256(self) -> str: ...  # noqa: D102
    @property
    def base_sketch(self) -> Sketch: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def drawn_by(self) -> str | None: ...  # noqa: D102
    @property
    def sampler(self) -> Sampler: ...  # noqa: D102
    def weight(self, path: str) -> Tensor: ...  # noqa: D102
    def pipeline(self) -> Any: ...  # noqa: D102


class Model:
    """A base model on disk: a diffusers pipeline folder of a known family.

    Args:
        folder: the pipeline folder.
        origin: what may be said about where it came from.
        family: None detects it from the folder's own configs.
        variant: suffix of the weight files (`fp16`), None for unsuffixed ones.
        device: where text is encoded and pictures are drawn.
        dtype: of the pipeline that draws pictures; None means float32 on a CPU, else the file's.
        clip_skip: 2 reads the text states of the last layer but one, as apps call it; None: as the
            family says.
        steps: of a picture; None: as the checkpoint's kind is drawn. So is guidance.
        guidance: see steps.
        hashed: sha256 of files of the folder that are known already. Every other file is read for
            its hash when one is asked for, and once.

    Raises:
        FamilyError: unknown architecture, missing or damaged files, pickled weights only.
    """

    def __init__(
        self,
        folder: Path,
        origin: Origin,
        *,
        family: str | None = None,
        variant: str | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        clip_skip: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        hashed: Mapping[Path, str] | None = None,
    ) -> None:
        self._hashed = dict(hashed or {})
        self._drawn: dict[str, Any] = {"steps": steps, "guidance": guidance}
        self.folder, self.origin, self.variant, self.device = folder, origin, variant, device
        self.dtype = dtype or (torch.float32 if device == "cpu" else None)
        self._index = read_config(folder / "model_index.json")
        self.config = read_config(folder / "unet" / "config.json")
        self.family = load_family(family) if family else detect(self._index, self.config)
        self.clip_skip = self.family.clip_skip(clip_skip)
        check_parts(self.family, folder, self._index, self.config)
        self.label, self.revision = origin.label, origin.revision
        self.license, self.license_name = origin.license, origin.license_name
        self.license_link, self.local = origin.license_link, origin.local
        self.weight_files = weight_files(folder / self.family.denoiser, variant)
        self._tables = {path: read_header(path)[1] for path in self.weight_files}
        tables = self._tables.values()
        self.shapes = {n: tuple(info.shape) for table in tables for n, info in table.items()}
        denoiser = self.family.denoiser
        in_eight_bits(tables)
        found = self.family.select(self.shapes, self.config)
        self.standard = self.family.published(found)
        self.modules = {g: [f"{denoiser}.{path}" for path in paths] for g, paths in found.items()}
        if self.prediction_type not in self.family.predictions:
            raise FamilyError(
                f"family {self.family.name} does not know this prediction type",
                got=self.prediction_type,
                allowed=", ".join(self.family.predictions),
            )

    @cached_property
    def scheduler(self) -> dict[str, Any]:
        """The scheduler's config: what the model predicts, and how it is sampled."""
        return read_config(self.folder / "scheduler" / "scheduler_config.json")

    @property
    def prediction_type(self) -> str:
        """What the denoiser predicts, from the scheduler's config: epsilon or v_prediction."""
        return str(self.scheduler.get("prediction_type", "epsilon"))

    @cached_property
    def sampler(self) -> Sampler:
        """How its pictures are drawn."""
        return own_sampler(self.family, self.config, self.scheduler, **self._drawn)

    @property
    def pipeline_class(self) -> str:
        """The class of diffusers that loads it, as its own index says."""
        own = str(self._index.get("_class_name"))
        match = self.family.match
        return own if own in match.also else match.pipeline

    @property
    def paths(self) -> list[str]:
        """All text-consuming modules, key and value, in name order."""
        return sorted(path for paths in self.modules.values() for path in paths)

    def weight(self, path: str) -> Tensor:
        """One map's weight (out, d) in the file's dtype, read alone; must be finite."""
        name = f"{path.partition('.')[2]}.weight"
        for file, table in self._tables.items():
            if name in table:
                return read_tensors(file, [name], table)[name]
        raise FamilyError(f"no weight {name} in {self.family.denoiser}")

    def shape(self, path: str) -> tuple[int, ...]:
        """Shape of one map, from the file's header."""
        name = f"{path.partition('.')[2]}.weight"
        return next(table[name].shape for table in self._tables.values() if name in table)

    @cached_property
    def reader(self) -> TextEncoder:
        """The text side without its weights: reads and counts texts, encodes none."""
        return reader(self.folder, self.family)

    @cached_property
    def encoder(self) -> TextEncoder:
        """The text side, built without denoiser and decoder, in float32."""
        absent: dict[str, Any] = dict.fromkeys(set(self._index) & _NOT_TEXT)
        pipe = self._load(absent, torch.float32, self.family.match.pipeline).to(self.device)
        return TextEncoder(pipe, self.family, self.clip_skip)

    def pipeline(self, **parts: Any) -> Any:
        """The whole stock pipeline, loaded anew on each call; safety checker as shipped.

        Args:
            parts: loaded components to take instead of the folder's own.
        """
        pipe = self._load(parts, self.dtype)
        skip_layers(pipe, self.family, self.clip_skip)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(self.device)

    def _load(
        self, parts: dict[str, Any], dtype: torch.dtype | None, cls_name: str | None = None
    ) -> Any:
        import diffusers
        from safetensors import SafetensorError

        try:
            cls = getattr(diffusers, cls_name or self.pipeline_class)
            return cls.from_pretrained(
                self.folder,
                variant=self.variant,
                use_safetensors=True,
                local_files_only=True,
                dtype=dtype,
                **parts,
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise FamilyError(
                "this pipeline folder does not load",
                got=" ".join(str(error).split())[:300],
                next="download it again; safetensors alone are read",
            ) from None

    @cached_property
    def identity(self) -> Identity:
        """What an edit belongs to: denoiser and text encoders, however they lie on the disk."""
        return identify(self._pieces(), self.family)

    @property
    def base_sha256(self) -> str:
        """Digest of the denoiser's and the text encoders' values; see `Identity`."""
        return self.identity.sha256

    @property
    def base_sketch(self) -> Sketch:
        """A few numbers that tell this base from another within a dtype's rounding."""
        return self.identity.sketch

    def _pieces(self) -> Iterator[Piece]:
        """The weights that a loader takes from the files, by the names that it gives them."""
        for component in components(self.family):
            files, known = self._files_of(component), None
            if component != self.family.denoiser:
                known = self.reader.names(component)
            for file in files:
                table = self._tables.get(file) or read_header(file)[1]
                for name, info in table.items():
                    plain = plain_name(name)
                    if info.dtype in _FLOATS and (known is None or plain in known):
                        load = partial(_read, file, name, table)
                        yield Piece(component, plain, info.shape, load)

    def _files_of(self, component: str) -> list[Path]:
        """Of the variant; of a component that has none of it the unsuffixed ones, as loaders do."""
        if component == self.family.denoiser:
            return self.weight_files
        try:
            return weight_files(self.folder / component, self.variant)
        except FamilyError:
            if self.variant is None:
                raise
            return weight_files(self.folder / component, None)

    @cached_property
    def digest(self) -> str:
        """Digest of every file that a run reads: weights, configs, tokenizers."""
        files = {
            str(path.relative_to(self.folder)): path
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
            and path.suffix in (".json", ".txt", ".safetensors")
            and not any(part.startswith(".") for part in path.relative_to(self.folder).parts)
        }
        return self._digest(files)

    @property
    def drawn_by(self) -> str | None:
        """What decides, to the last bit, which pictures `pipeline()` draws: part of a cache's key."""
        told = [self.digest, self.variant, str(self.dtype)]
        return sha256_json([*told, self.clip_skip] if self.clip_skip else told)

    def _digest(self, files: Mapping[str, Path]) -> str:
        for path in files.values():
            if path not in self._hashed:
                self._hashed[path] = sha256_file(path)
        rows = {name: self._hashed[path] for name, path in files.items()}
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_FLOATS = {"F64", "F32", "F16", "BF16"}  # a buffer of positions is no weight
_NOT_TEXT = {"unet", "vae", "safety_checker", "feature_extractor", "image_encoder"}


def _read(file: Path, name: str, table: Mapping[str, TensorInfo]) -> Tensor:
    return read_tensors(file, [name], table)[name]


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors files of one component, shards in order.

    Raises:
        FamilyError: missing, only another variant, or only pickled weights.
    """
    others = sorted(path.name for path in folder.glob("*")) if folder.is_dir() else []
    chosen = folder / weight_name(folder.name, others, variant)
    return _shards(folder, chosen) if chosen.suffix == ".json" else [chosen]


def weight_name(component: str, others: Sequence[str], variant: str | None) -> str:
    """The one safetensors file of a component, or the index of its shards, among its file names.

    Raises:
        FamilyError: missing, only another variant, or only pickled weights.
    """
    middle = f".{variant}" if variant else ""
    for stem in ("diffusion_pytorch_model", "model"):
        for name in (f"{stem}{middle}.safetensors", f"{stem}.safetensors.index{middle}.json"):
            if name in others:
                return name
    pickled = [name for name in others if name.endswith((".bin", ".pt", ".ckpt", ".pth"))]
    stems = [name.split(".")[1] for name in others if name.endswith(".safetensors")]
    other = [_SHARD.sub("", stem) for stem in stems if stem != "safetensors"]
    if other and not variant:
        hint = f"this folder has variant files only: --variant {other[0]}"
    elif pickled:
        hint = "these weights are pickled, which can run code: convert them to safetensors first"
    else:
        hint = "the download is incomplete, or this is no pipeline folder"
    raise FamilyError(
        f"no {'variant ' + variant + ' of the ' if variant else ''}{component} weights",
        got=", ".join(others[:6]) or "an empty or missing folder",
        allowed=f"{'model' if 'text' in component else 'diffusion_pytorch_model'}"
        f"{middle}.safetensors",
        next=hint,
    )


def _shards(folder: Path, index: Path) -> list[Path]:
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    bad = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    missing = [name for name in names if name not in bad and not (folder / name).is_file()]
    if bad or missing or not names:
        raise FamilyError(
            f"{index.name} names files that are not there", got=", ".join((bad + missing)[:3])
        )
    return [folder / name for name in names]


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file of a pipeline folder, a mapping.

    Raises:
        FamilyError: missing, or no mapping.
    """
    if not path.is_file():
        raise FamilyError(
            f"no {path.name} in {path.parent.name or 'the folder'}",
            got=str(path.parent),
            allowed="a diffusers pipeline folder, a .safetensors file or a Hub id",
        )
    value = read_json(path)
    if not isinstance(value, dict):
        raise FamilyError(f"{path.name} is not a mapping")
    return value


def check_weights(model: Model) -> None:
    """Refuse a base whose text-consuming maps hold a NaN or an infinity."""
    for path in model.paths:
        check_finite(model.weight(path), path)
