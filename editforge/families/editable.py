"""Whether a loaded denoiser computes with the weights that it shows, so that an edit of them acts.

Offloading, quantization and fused projections keep the numbers that count elsewhere: hooks put them in
place for one forward pass, from memory or from the disk, or another module holds a copy. A write to
what is shown would then change nothing and say nothing. Each such pipeline is refused, with the way
out; `enable_model_cpu_offload`, `torch.compile` and storage in 16 bits are none of them. A text encoder
is read and never written, so there it is enough that its numbers are in memory.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from editforge.ground.errors import EditError


def uncompiled(module: Any) -> Any:
    """What `torch.compile(module)` wraps, with its own names; any other module as it is."""
    return getattr(module, "_orig_mod", module)


def check_acts(root: nn.Module, path: str, parameter: Tensor) -> None:
    """Refuse a parameter that the next forward pass would not read.

    Args:
        root: the denoiser, uncompiled.
        path: of the parameter below `root`; its module may be wrapped by an adapter.
        parameter: as it was found.

    Raises:
        EditError: where the numbers are instead, and what to do first.
    """
    module: Any = root
    for part in path.split(".")[:-1]:
        _check_module(module, path)
        module = getattr(module, part)
    _check_module(module, path)
    _check_not_meta(path, parameter)
    # a subclass of Tensor holds codes and scales behind the dtype it shows
    plain = type(parameter.data) is Tensor and parameter.is_floating_point()
    if not plain or parameter.dtype.itemsize < 2:
        raise EditError(
            "the weights of this pipeline are quantized",
            got=f"{path} is {parameter.dtype}, {type(parameter).__name__}",
            allowed="float16, bfloat16, float32: in fewer bits an edit drowns in rounding",
            next="load the pipeline without quantization, or save the edit as a LoRA and load that",
        )


def check_here(component: str, module: nn.Module) -> None:
    """Refuse a component that is read whole and whose weights lie elsewhere between two passes.

    Groups that wait in memory are there to read; those that wait on the disk show whatever was in memory
    before.

    Args:
        component: of the pipeline, as `text_encoder`.
        module: it.

    Raises:
        EditError: where the numbers are instead, and what to do first.
    """
    for path, parameter in module.named_parameters():
        _check_not_meta(f"{component}.{path}", parameter)
    for part in module.modules():
        if getattr(getattr(_group_hook(part), "group", None), "offload_to_disk_path", None):
            raise _in_groups(component)


def _check_not_meta(path: str, parameter: Tensor) -> None:
    if parameter.is_meta:
        raise EditError(
            "the weights of this pipeline are offloaded",
            got=f"{path} is on the device meta: a hook brings it for each forward pass",
            allowed="weights in memory; enable_model_cpu_offload keeps them there",
            next="pipe.remove_all_hooks(), then this; enable_sequential_cpu_offload() again afterwards",
        )


def _group_hook(module: nn.Module) -> Any:
    return getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).get("group_offloading")


def _in_groups(path: str) -> EditError:
    return EditError(
        "the weights of this pipeline are offloaded in groups",
        got=f"{path} is brought from elsewhere for each forward pass",
        next="do this before enable_group_offload(): load the pipeline anew",
    )


def _check_module(module: Any, path: str) -> None:
    # the flag `fused_projections` stays after unfuse_qkv_projections(), which changes processors alone
    if "Fused" in type(getattr(module, "processor", None)).__name__:
        raise EditError(
            "the projections of this pipeline are fused",
            got=f"{path} is no longer used: another module holds a copy",
            next="pipe.unfuse_qkv_projections(), then this; fuse them again afterwards",
        )
    if _group_hook(module) is not None:
        raise _in_groups(path)
