"""The weight names of the UNets other programs know, as data: SD 1.x and 2.x share one table.

`inspect` predicts from this table what a reader matches, and `read_lora` turns kohya's underscores
back into module paths with it. It is our own statement of the architectures; a test compares it
with the real classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from editforge.families.original import unet_names


@dataclass(frozen=True)
class Layout:
    """Transformer blocks per attention, 0 for a block without; two resnets a block, one more up."""

    down: tuple[int, ...]
    mid: int
    text_width: int
    shortcuts: tuple[int, ...]  # down blocks whose first resnet changes the width
    added: bool = False  # SDXL's embedding of sizes and pooled text


LAYOUTS = {
    "sd1": Layout(down=(1, 1, 1, 0), mid=1, text_width=768, shortcuts=(1, 2)),
    "sd2": Layout(down=(1, 1, 1, 0), mid=1, text_width=1024, shortcuts=(1, 2)),
    "sdxl": Layout(down=(0, 2, 10), mid=10, text_width=2048, shortcuts=(1, 2), added=True),
}


@cache
def unet_modules(family: str) -> dict[str, bool]:
    """Module path to whether it has a bias, for every module with a weight."""
    layout = LAYOUTS[family]
    last = len(layout.down) - 1
    modules: dict[str, bool] = {}
    ends = ["conv_in", "time_embedding.linear_1", "time_embedding.linear_2"]
    ends += ["add_embedding.linear_1", "add_embedding.linear_2"] if layout.added else []
    modules |= dict.fromkeys([*ends, "conv_norm_out", "conv_out"], True)
    for block, depth in enumerate(layout.down):
        for layer in range(2):
            shortcut = layer == 0 and block in layout.shortcuts
            modules |= _resnet(f"down_blocks.{block}.resnets.{layer}", shortcut)
            modules |= _attention(f"down_blocks.{block}.attentions.{layer}", depth)
        if block < last:
            modules[f"down_blocks.{block}.downsamplers.0.conv"] = True
    modules |= _resnet("mid_block.resnets.0", False) | _resnet("mid_block.resnets.1", False)
    modules |= _attention("mid_block.attentions.0", layout.mid)
    for block, depth in enumerate(reversed(layout.down)):
        for layer in range(3):
            modules |= _resnet(f"up_blocks.{block}.resnets.{layer}", True)
            modules |= _attention(f"up_blocks.{block}.attentions.{layer}", depth)
        if block < last:
            modules[f"up_blocks.{block}.upsamplers.0.conv"] = True
    return modules


def _resnet(place: str, shortcut: bool) -> dict[str, bool]:
    parts = ["norm1", "conv1", "time_emb_proj", "norm2", "conv2"]
    return {f"{place}.{part}": True for part in [*parts, *(["conv_shortcut"] if shortcut else [])]}


def _attention(place: str, depth: int) -> dict[str, bool]:
    if depth == 0:
        return {}
    modules = {f"{place}.{part}": True for part in ("norm", "proj_in", "proj_out")}
    for number in range(depth):
        block = f"{place}.transformer_blocks.{number}"
        for attention in ("attn1", "attn2"):
            modules |= {f"{block}.{attention}.{part}": False for part in ("to_q", "to_k", "to_v")}
            modules[f"{block}.{attention}.to_out.0"] = True
        parts = ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2")
        modules |= {f"{block}.{part}": True for part in parts}
    return modules


@cache
def unet_parameters(family: str) -> frozenset[str]:
    """Every parameter name of the UNet, diffusers spelling."""
    modules = unet_modules(family)
    biases = {f"{name}.bias" for name, biased in modules.items() if biased}
    return frozenset({f"{name}.weight" for name in modules} | biases)


@cache
def original_parameters(family: str) -> frozenset[str]:
    """Every parameter name of the UNet, spelled as in the published single files."""
    return frozenset(unet_names(sorted(unet_parameters(family))).values())


@cache
def kohya_modules(family: str) -> dict[str, str]:
    """`lora_unet_...` stem to module path, in both spellings kohya files use."""
    original = unet_names(unet_modules(family))
    return {
        f"lora_unet_{spelling.replace('.', '_')}": module
        for module, theirs in original.items()
        for spelling in (theirs, module)
    }


def best_family(modules: set[str], text_width: int | None = None) -> str | None:
    """The family whose UNet has all of these module paths.

    With the family's own text width four in five are enough: a foreign file may hold more than the
    UNet, but another architecture that shares most names has another width.

    Args:
        modules: paths below the UNet, at least some of them.
        text_width: width that cross attention reads; tells 2.x from 1.x, which share all names.
    """
    counts = {name: len(modules & set(unet_modules(name))) for name in LAYOUTS}
    best = max(counts, key=lambda name: counts[name])
    if best == "sd1" and text_width == LAYOUTS["sd2"].text_width:
        best = "sd2"
    share = counts[best] / max(1, len(modules))
    enough = share >= 0.8 if text_width == LAYOUTS[best].text_width else share == 1
    return best if enough else None
