"""A shipped artifact as its user loads it: stock diffusers calls, and the base left alone.

Each form gets a pipeline of its own, so nothing of the one that the base is drawn with changes. A
LoRA is fused and unloaded: the weights are those of the user's `load_lora_weights` at weight 1, which
in float32 is the same up to rounding, while under bfloat16 autocast an adapter beside its map rounds
twice and draws other pictures than every other form of the same edit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editforge.families.model import Model
from editforge.ground.errors import PackageError


@dataclass(frozen=True)
class Shipped:
    """An eraser: called with the base's pipeline, it gives the one that the artifact makes.

    Args:
        form: lora, unet, pipeline or single-file.
        place: the LoRA or checkpoint file, or the folder.
        model: its base.
        strength: what was baked in; only hints need it.
    """

    form: str
    place: Path
    model: Model
    strength: float = 1.0

    def __call__(self, pipe: Any) -> Any:
        """The edited pipeline, in the precision and on the device of `pipe`, which stays as it is.

        Raises:
            PackageError: diffusers does not load the artifact, or takes nothing from it.
        """
        try:
            edited = _LOADERS[self.form](self.model, self.place, pipe.unet.dtype)
        except Exception as error:  # diffusers raises many kinds; each means the same to the user
            raise PackageError(
                f"diffusers does not load this {self.form}",
                got=" ".join(str(error).split())[:300],
                next="editforge verify FOLDER compares its files with their hashes",
            ) from None
        edited.set_progress_bar_config(disable=True)
        return edited.to(pipe.device)


def _lora(model: Model, file: Path, dtype: Any) -> Any:
    pipe = model.pipeline()
    pipe.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
    if not pipe.get_list_adapters():
        raise ValueError("the pipeline took no adapter from it, as for keys without `unet.`")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe


def _unet(model: Model, folder: Path, dtype: Any) -> Any:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, dtype=dtype
    )
    return model.pipeline(unet=unet)


def _pipeline(model: Model, folder: Path, dtype: Any) -> Any:
    return _class(model).from_pretrained(
        folder, use_safetensors=True, local_files_only=True, dtype=dtype
    )


def _single_file(model: Model, file: Path, dtype: Any) -> Any:
    # The file has no configs: those of its base, which is at hand, need no network.
    return _class(model).from_single_file(
        str(file), config=str(model.folder), local_files_only=True, dtype=dtype
    )


def _class(model: Model) -> Any:
    import diffusers

    return getattr(diffusers, model.family.match.pipeline)


_LOADERS: dict[str, Callable[[Model, Path, Any], Any]] = {
    "lora": _lora,
    "unet": _unet,
    "pipeline": _pipeline,
    "single-file": _single_file,
}
