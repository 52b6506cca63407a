"""From diffusers names to the published original names: SD 1.x and SDXL, as tables plus one walk.

Three places are more than renaming: VAE attention matrices become 1x1 convolutions, and an encoder
of OpenCLIP type fuses q, k and v into one `in_proj` and transposes its projection. Everything else
keeps its bits. Both spellings of published text encoders (with and without `text_model.`) and of
published VAE attention (`to_q` and `query`) are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from editforge.ground.errors import PackageError, did_you_mean

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_MID = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "query": "q",
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}
_OPENCLIP_ENDS = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_OPENCLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_names(names: Iterable[str]) -> dict[str, str]:
    """Diffusers module or parameter names to original ones, without `model.diffusion_model.`.

    The number of layers per block, which the original numbering runs through, is read off the
    names.

    Raises:
        PackageError: a name this table does not know; nothing is guessed.
    """
    listed = list(names)
    found = [re.match(r"down_blocks\.\d+\.resnets\.(\d+)\.", name) for name in listed]
    layers = 1 + max((int(match[1]) for match in found if match), default=0)
    attended = {m[1] for name in listed if (m := re.match(r"up_blocks\.(\d+)\.attentions", name))}
    return {name: _unet_name(name, layers, attended) for name in listed}


def _unet_name(name: str, layers: int, attended: set[str]) -> str:
    for ours, theirs in _UNET_ENDS.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
        side, block, kind, layer, rest = match.groups()
        number = int(block) * (layers + 1) + int(layer) + (side == "down")
        place = f"{'input' if side == 'down' else 'output'}_blocks.{number}"
        if kind == "attentions":
            return f"{place}.1.{rest}"
        return f"{place}.0.{_swap(rest, _RESNET, name)}"
    if match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv(.*)", name):
        return f"input_blocks.{(int(match[1]) + 1) * (layers + 1)}.0.op{match[2]}"
    if match := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv(.*)", name):
        number = int(match[1]) * (layers + 1) + layers
        return f"output_blocks.{number}.{2 if match[1] in attended else 1}.conv{match[2]}"
    if match := re.match(r"mid_block\.(resnets\.[01]|attentions\.0)\.(.+)", name):
        rest = match[2] if match[1] == "attentions.0" else _swap(match[2], _RESNET, name)
        return f"middle_block.{_MID[match[1]]}.{rest}"
    raise _unknown("UNet", name)


def vae_names(names: Iterable[str]) -> dict[str, str]:
    """Diffusers VAE names to original ones, without `first_stage_model.`."""
    listed = list(names)
    found = [re.match(r"decoder\.up_blocks\.(\d+)\.", name) for name in listed]
    blocks = 1 + max((int(match[1]) for match in found if match), default=0)
    return {name: _vae_name(name, blocks) for name in listed}


def _vae_name(name: str, blocks: int) -> str:
    if name.startswith(("quant_conv.", "post_quant_conv.")):
        return name
    if match := re.match(r"(encoder|decoder)\.(conv_in|conv_out|conv_norm_out)\.(\w+)$", name):
        end = "norm_out" if match[2] == "conv_norm_out" else match[2]
        return f"{match[1]}.{end}.{match[3]}"
    if match := re.match(r"(encoder|decoder)\.mid_block\.resnets\.([01])\.(.+)", name):
        return f"{match[1]}.mid.block_{int(match[2]) + 1}.{_shortcut(match[3])}"
    if match := re.match(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)", name):
        return f"{match[1]}.mid.attn_1.{_swap(match[2], _VAE_ATTENTION, name)}"
    pattern = r"(?:encoder\.(down)|decoder\.(up))_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)"
    if match := re.match(pattern, name):
        side = match[1] or match[2]
        place = (
            f"encoder.down.{match[3]}" if match[1] else f"decoder.up.{blocks - 1 - int(match[3])}"
        )
        if match[4] == "resnets":
            return f"{place}.block.{match[5]}.{_shortcut(match[6])}"
        if match[4] == f"{side}samplers":
            return f"{place}.{side}sample.{match[6]}"
    raise _unknown("VAE", name)


def is_vae_matrix(name: str) -> bool:
    """True for the attention matrices that the original file stores as 1x1 convolutions."""
    return (
        ".mid_block.attentions.0." in name and name.endswith("weight") and "group_norm" not in name
    )


def long_text_name(name: str) -> str:
    """A text encoder's name with `text_model.`, whichever spelling the file has."""
    if name.startswith(("text_model.", "text_projection.")):
        return name
    return f"text_model.{name}"


def openclip_names(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Original OpenCLIP name to the one name, or the q, k, v names in this order, that make it."""
    by_long = {long_text_name(name): name for name in names}
    result: dict[str, tuple[str, ...]] = {}
    for long, name in by_long.items():
        if long.endswith("embeddings.position_ids"):
            continue  # a buffer of old library versions, 0..76, which the original does not have
        if long in _OPENCLIP_ENDS:
            result[_OPENCLIP_ENDS[long]] = (name,)
            continue
        match = re.match(r"text_model\.encoder\.layers\.(\d+)\.(.+)", long)
        if match is None:
            raise _unknown("OpenCLIP text encoder", name)
        place, rest = f"transformer.resblocks.{match[1]}", match[2]
        if fused := re.match(r"self_attn\.[qkv]_proj\.(weight|bias)", rest):
            parts = [f"self_attn.{letter}_proj.{fused[1]}" for letter in "qkv"]
            layer = long.removesuffix(rest)
            result[f"{place}.attn.in_proj_{fused[1]}"] = tuple(by_long[layer + p] for p in parts)
        else:
            result[f"{place}.{_swap(rest, _OPENCLIP_LAYER, name)}"] = (name,)
    return result


def _shortcut(rest: str) -> str:
    return rest.replace("conv_shortcut", "nin_shortcut")


def _swap(rest: str, table: dict[str, str], name: str) -> str:
    for ours, theirs in table.items():
        if rest == ours or rest.startswith(f"{ours}."):
            return theirs + rest.removeprefix(ours)
    raise _unknown("block", name, table)


def _unknown(what: str, name: str, known: Iterable[str] = ()) -> PackageError:
    return PackageError(
        f"no original name for this {what} weight",
        got=name,
        allowed=did_you_mean(name.rpartition(".")[0], known) if known else None,
        next="export another format: --export pipeline",
    )
