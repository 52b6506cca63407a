"""Whether a checkpoint is one of a family, asked of its configs before anything else of it is read.

A family's name is a promise about four things: the class that loads it, the width of its text states,
encoders that are CLIP's (causal: a state depends on what stands before it alone), and a denoiser that
reads noise, perhaps a picture and a mask beside it. What breaks one of them is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from editforge.families.schema import Family, TextSlice, load_family, shipped_families
from editforge.ground.disk import read_json
from editforge.ground.errors import FamilyError
from editforge.ground.files import TensorInfo

CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
_BESIDE = {0: "noise alone", 4: "a picture", 5: "a picture and a mask"}


def detect(index: Mapping[str, Any], config: Mapping[str, Any]) -> Family:
    """The one shipped family whose pipeline class and text width this model has.

    Raises:
        FamilyError: none fits; the known ones are listed.
    """
    pipeline, width = index.get("_class_name"), config.get("cross_attention_dim")
    families = [load_family(name) for name in shipped_families()]
    for family in families:
        known = (family.match.pipeline, *family.match.also)
        if pipeline in known and family.match.text_width == width:
            return family
    listed = "; ".join(
        f"{f.name} ({f.match.pipeline}, text width {f.match.text_width})" for f in families
    )
    raise FamilyError(
        "unknown architecture",
        got=f"{pipeline}, text width {width}",
        allowed=listed,
        next="describe it in a family YAML and pass --set model.family=my.yaml",
    )


def check_parts(
    family: Family, folder: Path, index: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Refuse a folder whose text encoders or whose denoiser are not what the family says.

    Raises:
        FamilyError: with the part, and what it is instead.
    """
    check_channels(family, config)
    for part in family.text:
        row = index.get(part.encoder)
        name = row[1] if isinstance(row, list) and len(row) == 2 else None
        path = folder / part.encoder / "config.json"
        width = read_json(path).get("hidden_size") if path.is_file() else None
        if problem := encoder_fault(part, part.encoder, name, width):
            raise FamilyError(
                f"this model has another text side than family {family.name}",
                got=problem,
                allowed=f"{' or '.join(CLIP)} of width {part.width}",
                next="only causal CLIP encoders are read: editforge list families",
            )


def encoder_fault(part: TextSlice, place: str, name: str | None, width: int | None) -> str | None:
    """Why an encoder is not the family's; None: it is.

    Args:
        part: what the family says of it.
        place: what to call it.
        name: its class; None: there is none.
        width: of its states; None: not known.
    """
    if name is None:
        return f"{place} is not there"
    if name not in CLIP:
        return f"{place} is a {name}, not a {CLIP[0]}"
    return None if width in (None, part.width) else f"{place} has width {width}, not {part.width}"


def check_channels(family: Family, config: Mapping[str, Any]) -> None:
    """Refuse a denoiser that reads something beside the noise that the family does not know.

    Raises:
        FamilyError: with the number of channels.
    """
    reads, writes = config.get("in_channels"), config.get("out_channels")
    if isinstance(reads, int) and isinstance(writes, int) and reads - writes not in family.beside:
        known = ", ".join(_BESIDE.get(count, f"{count} channels") for count in family.beside)
        raise FamilyError(
            f"the denoiser reads {reads - writes} channels beside the noise",
            got=f"in_channels {reads}, out_channels {writes}",
            allowed=f"{known}, in family {family.name}",
            next="an upscaler or a depth model is none of these: erase from its base model",
        )


def in_eight_bits(tables: Iterable[Mapping[str, TensorInfo]]) -> None:
    """Refuse a pipeline folder whose denoiser is stored in eight bits.

    Raises:
        FamilyError: with a weight, and the way out.
    """
    for table in tables:
        for name, info in table.items():
            if info.dtype.startswith("F8"):
                raise FamilyError(
                    "the weights of this folder are stored in eight bits",
                    got=f"{name} is {info.dtype}",
                    allowed="float16, bfloat16, float32: in fewer bits an edit drowns in rounding",
                    next="name the 16-bit checkpoint it was made from, or a single file: an fp8 "
                    "single file is read as float16",
                )
