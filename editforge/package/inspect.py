"""What a file holds, and what a program would make of it, from its header alone.

The prediction compares names with our own table of the UNets of SD 1.x, 2.x and XL. ComfyUI reads
kohya's names and ignores the attention keys of a diffusers LoRA with a warning; a pipeline loader
attaches nothing from a file without the component prefix and says nothing. What is said about A1111
is convention, not run.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from editforge.families.keys import (
    LAYOUTS,
    best_family,
    kohya_modules,
    original_parameters,
    unet_modules,
    unet_parameters,
)
from editforge.ground.errors import PackageError
from editforge.ground.files import TensorInfo, read_header
from editforge.package.facts import repositories
from editforge.recipe import registry

Reader = Literal["diffusers", "comfyui", "a1111"]
READERS: tuple[Reader, ...] = ("diffusers", "comfyui", "a1111")
_OF_TEXT = re.compile(
    r"lora_te[12]?_text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])"
)
_LORA = (".lora_A.weight", ".lora_B.weight")
_KOHYA = (".lora_down.weight", ".lora_up.weight", ".alpha", ".diff", ".diff_b", ".set_weight")


@dataclass(frozen=True)
class Inspection:
    """What was found. `missing` lists keys the reader needs and the file lacks."""

    file: str
    format: str
    reader: str
    family: str | None
    ranks: list[int]
    alpha: float | None
    dtypes: list[str]
    header: dict[str, str]
    matched: list[str]
    unmatched: list[str]
    missing: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def is_complete(self) -> bool:
        """True if the reader uses every key and lacks none."""
        return bool(self.matched) and not self.unmatched and not self.missing

    def to_json(self) -> dict[str, Any]:
        """Plain data, for `--json`."""
        return {**asdict(self), "is_complete": self.is_complete}

    def text(self) -> str:
        """A few lines for a terminal."""
        lines = [f"{self.file}: {self.format}"]
        if self.family:
            lines.append(f"  family:    {self.family}")
        if self.ranks:
            lines.append(f"  rank:      {', '.join(map(str, self.ranks))}; alpha {self.alpha}")
        lines.append(f"  dtype:     {', '.join(self.dtypes) or 'none'}")
        total = len(self.matched) + len(self.unmatched)
        lines.append(f"  {self.reader}: reads {len(self.matched)} of {total} keys")
        for title, names in (("unmatched", self.unmatched), ("missing", self.missing)):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                lines.append(f"  {title}: {', '.join(names[:3])}{more}")
        if self.note:
            lines.append(f"  note:      {self.note}")
        for key, value in sorted(self.header.items()):
            lines.append(f"  {key} = {value if len(value) <= 100 else value[:97] + '...'}")
        return "\n".join(lines)


def inspect_file(path: Path, reader: str = "diffusers") -> Inspection:
    """Inspect a LoRA, a WeightEdit, a component, a single file, or a folder with one of them.

    Raises:
        PackageError: not a safetensors file, a damaged one, or no such reader.
    """
    if reader not in READERS:
        raise PackageError("no such reader", got=reader, allowed=", ".join(READERS))
    file = _weights_of(path) if path.is_dir() else path
    if file.suffix != ".safetensors":
        raise PackageError(
            "only safetensors files are opened", got=file.name, next="pickled files can run code"
        )
    header, table = read_header(file)
    kind = _format(header, table)
    family = _family(kind, table)
    matched, missing, note = _PREDICT[kind](table, reader, family)
    return Inspection(
        file=file.name,
        format=kind,
        reader=reader,
        family=family,
        ranks=_ranks(table),
        alpha=_alpha(header),
        dtypes=sorted({info.dtype for info in table.values()}),
        header=header,
        matched=sorted(matched),
        unmatched=sorted(set(table) - matched),
        missing=sorted(missing),
        note=note,
    )


def _weights_of(folder: Path) -> Path:
    for place in repositories(folder):
        if found := sorted(place.glob("*.safetensors")):
            plain = [path for path in found if path.name.count(".") == 1]
            return (plain or found)[0]
    raise PackageError("no safetensors file in this folder", got=folder.name)


def _format(header: dict[str, str], table: dict[str, TensorInfo]) -> str:
    if "editforge.weight_edit" in header:
        return "weight edit"
    if header and any(kind.header in header for kind in registry.guides()):
        return "guard"
    if any(name.endswith(_LORA) for name in table):
        return "diffusers LoRA"
    if any(name.startswith("lora_") and name.endswith(_KOHYA) for name in table):
        return "kohya LoRA"
    if any(name.startswith("model.diffusion_model.") for name in table):
        return "single file"
    return "component"


def _family(kind: str, table: dict[str, TensorInfo]) -> str | None:
    if kind == "kohya LoRA":
        stems = {stem for name in table if not (stem := name.split(".")[0]).startswith("lora_te")}
        modules = {m for f in LAYOUTS for s, m in kohya_modules(f).items() if s in stems}
        unknown = {stem for stem in stems if not any(stem in kohya_modules(f) for f in LAYOUTS)}
        return best_family(modules | unknown, _text_width(table))
    if kind == "single file":
        names = {name.removeprefix("model.diffusion_model.") for name in table}
        counts = {family: len(names & original_parameters(family)) for family in LAYOUTS}
        best = max(counts, key=lambda family: counts[family])
        return best if counts[best] else None
    shared = kind == "weight edit"  # factors shared by modules have no module's name
    names = {_module(name) for name in table if not (shared and name.startswith("A."))}
    return best_family(names, _text_width(table))


def _text_width(table: dict[str, TensorInfo]) -> int | None:
    for name, info in table.items():
        key = name.replace(".", "_")
        if "attn2_to_k" in key and "lora_up" not in key and "lora_B" not in name:
            return info.shape[-1] if len(info.shape) == 2 and not name.startswith("B.") else None
    return None


def _module(name: str) -> str:
    for end in (*_LORA, ".weight", ".bias"):
        name = name.removesuffix(end)
    return name.removeprefix("B.").removeprefix("unet.")


def _ranks(table: dict[str, TensorInfo]) -> list[int]:
    down = (".lora_A.weight", ".lora_down.weight")
    found = {info.shape[0] for name, info in table.items() if name.endswith(down) and info.shape}
    found |= {i.shape[0] for n, i in table.items() if n.startswith("A.") and len(i.shape) == 2}
    return sorted(found)


def _alpha(header: dict[str, str]) -> float | None:
    """Alpha as the header tells it; the scalars of a kohya file are tensors and are not read."""
    try:
        if "ss_network_alpha" in header:
            return float(header["ss_network_alpha"])
        body = json.loads(header.get("lora_adapter_metadata", "{}"))
        found = [value for key, value in body.items() if key.endswith(".lora_alpha")]
        return float(found[0]) if found else None
    except (ValueError, TypeError, AttributeError):
        return None


Prediction = tuple[set[str], set[str], str]  # matched, missing, note


def _diffusers_lora(table: dict[str, TensorInfo], reader: str, family: str | None) -> Prediction:
    if reader == "diffusers":
        known = unet_modules(family) if family else None
        matched = {
            name
            for name in table
            if name.startswith("unet.") and (known is None or _module(name) in known)
        }
        bare = "" if matched else "without the prefix unet. the pipeline loader attaches nothing"
        return matched, set(), bare
    if reader == "a1111":
        return (
            set(),
            set(),
            "A1111 reads kohya's names (convention); use the other file of the repository",
        )
    # ComfyUI knows these modules too, but spells attention `.processor.to_` and asks for `_lora`.
    known = unet_modules(family) if family else {}
    matched = {
        name
        for name in table
        if _module(name) in known and ".to_" not in name and name.endswith(_LORA)
    }
    return matched, set(), "ComfyUI reads kohya's names; use the other file of the repository"


def _kohya_lora(table: dict[str, TensorInfo], reader: str, family: str | None) -> Prediction:
    known = kohya_modules(family) if family else {}
    ends = _KOHYA if reader == "comfyui" else _KOHYA[:3]
    text = {name for name in table if _OF_TEXT.fullmatch(name.split(".")[0])}
    found = {name for name in table if name.split(".")[0] in known} | text
    note = "it also changes a text encoder, which editforge itself does not load" if text else ""
    return {name for name in found if name.endswith(ends)}, set(), note


def _guard(table: dict[str, TensorInfo], reader: str, family: str | None) -> Prediction:
    return (
        set(),
        set(),
        "no weights: editforge.load_edit(FILE).attach(pipe) steers a pipeline by it",
    )


def _component(table: dict[str, TensorInfo], reader: str, family: str | None) -> Prediction:
    if family is None:
        note = "no UNet that is known here; a diffusers folder reads it by its config"
        return (set(table) if reader == "diffusers" else set()), set(), note
    known = unet_parameters(family)
    if reader == "a1111":
        return set(), set(), "A1111 reads single files (convention)"
    return set(table) & known, set(known) - set(table), ""


def _single_file(table: dict[str, TensorInfo], reader: str, family: str | None) -> Prediction:
    prefix = "model.diffusion_model."
    known = {f"{prefix}{name}" for name in original_parameters(family)} if family else set()
    others = {name for name in table if not name.startswith(prefix)}
    return (
        (set(table) & known) | others,
        known - set(table),
        "only the denoiser's names are checked",
    )


def _weight_edit(table: dict[str, TensorInfo], reader: str, family: str | None) -> Prediction:
    return set(), set(), "a working file; `editforge package` writes what programs read"


_PREDICT = {
    "diffusers LoRA": _diffusers_lora,
    "kohya LoRA": _kohya_lora,
    "component": _component,
    "single file": _single_file,
    "weight edit": _weight_edit,
    "guard": _guard,
}
