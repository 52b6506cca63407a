"""Does the stock pipeline with the LoRA draw what the packaged denoiser draws? Never imports editforge.

    editforge erase violin --export lora,unet --set package.dtype=float32 --output runs/agree
    python benchmarks/agreement.py editforge/emoji/assets/pipeline runs/agree/package "a violin"

Prints the largest difference of any pixel, in [0, 1], over four pictures a prompt: in float32, and with
the LoRA and the denoiser both cast to float16 files as a half-precision app reads them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="pipeline folder")
    parser.add_argument("package", type=Path, help="holds lora/ and unet/")
    parser.add_argument("prompts", nargs="+")
    args = parser.parse_args()
    print(
        "| files | largest difference LoRA - folder | largest change by the edit |\n|---|---|---|"
    )
    for name, stored in (("float32", torch.float32), ("float16", torch.float16)):
        base, lora, folder = (pipeline(args, part, stored) for part in ("base", "lora", "unet"))
        pictures = [draw(pipe, args.prompts) for pipe in (base, lora, folder)]
        apart = float((pictures[1] - pictures[2]).abs().max())
        moved = float((pictures[0] - pictures[2]).abs().max())
        print(f"| {name} | {apart:.2g} | {moved:.2g} |")


def pipeline(args: argparse.Namespace, part: str, stored: torch.dtype) -> StableDiffusionPipeline:
    """The base, with the LoRA or the packaged denoiser: rounded to `stored`, computed in float32."""
    pipe = StableDiffusionPipeline.from_pretrained(args.base, torch_dtype=torch.float32)
    if part == "lora":
        pipe.unet.to(stored)  # before the LoRA, so that its matrices are cast to the same type
        file = "pytorch_lora_weights.safetensors"
        pipe.load_lora_weights(args.package / "lora", weight_name=file)
    if part == "unet":
        pipe.unet = UNet2DConditionModel.from_pretrained(args.package / "unet", torch_dtype=stored)
    pipe.unet.to(stored).float()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: StableDiffusionPipeline, prompts: list[str]) -> torch.Tensor:
    """(4 * prompts, 3, h, w) in [0, 1]."""
    texts = [prompt for prompt in prompts for _ in range(4)]
    generators = [torch.Generator().manual_seed(4000 + index) for index in range(len(texts))]
    return pipe(texts, num_inference_steps=20, generator=generators, output_type="pt").images


if __name__ == "__main__":
    main()
