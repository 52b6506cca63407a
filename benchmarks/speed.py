"""`make speed`: seconds, peak memory and bytes of each part of a closed form, beside its floor.

SD 1.4- and SDXL-shaped models at random weights: the published text encoder configurations, and the
text-consuming maps of the published denoisers under their own names and shapes (the closed form reads
nothing else). Words are made up, so nothing here says anything about quality.

Floors: encoding and solving, 2 operations per multiply over the rate of a large product measured in
the same run (float32 for text, float64 for the solve); writing, bytes over the measured rate of a
sequential write. Each (family, number of concepts) runs in its own process; peak memory is the
kernel's high-water mark above what is resident once encoder and file headers are loaded.

    python benchmarks/speed.py                      # all rows, as a Markdown table
    python benchmarks/speed.py --family sd1 --concepts 10
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

UNETS = {
    "sd1": dict(
        cross_attention_dim=768,
        block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=8,
    ),
    "sdxl": dict(
        cross_attention_dim=2048,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
    ),
}
ENCODERS = {
    "sd1": [dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12)],
    "sdxl": [
        dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12),
        dict(hidden_size=1280, num_hidden_layers=32, num_attention_heads=20),
    ],
}
CANDIDATES = 50_000
SYLLABLES = [a + b for a in "bcdfghklmnprst" for b in ("a", "e", "i", "o", "u")]


def build(family: str, folder: Path) -> None:
    """Write a pipeline folder: random text encoders, and the denoiser's text-consuming maps."""
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from editforge.ground.files import write_safetensors
    from tests.tiny import tiny_tokenizer

    torch.manual_seed(0)
    index: dict[str, object] = {"unet": ["diffusers", "UNet2DConditionModel"]}
    for position, sizes in enumerate(ENCODERS[family]):
        suffix = "" if position == 0 else "_2"
        cls = CLIPTextModelWithProjection if suffix else CLIPTextModel
        width = sizes["hidden_size"]
        config = CLIPTextConfig(
            **sizes, intermediate_size=4 * width, vocab_size=49408, projection_dim=width
        )
        cls(config).save_pretrained(folder / f"text_encoder{suffix}")
        tiny_tokenizer().save_pretrained(folder / f"tokenizer{suffix}")
        index[f"text_encoder{suffix}"] = ["transformers", cls.__name__]
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
    name = "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline"
    index |= {"_class_name": name, "_diffusers_version": "0.38.0", "vae": [None, None]}
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    if family == "sd1":
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, **UNETS[family])
    config = {"_class_name": "UNet2DConditionModel", **dict(unet.config)}
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text(json.dumps(config, default=list))
    wanted = (".attn2.to_k.weight", ".attn2.to_v.weight")
    maps = {n: p.shape for n, p in unet.named_parameters() if n.endswith(wanted)}
    tensors = {name: torch.randn(shape, dtype=torch.float16) * 0.02 for name, shape in maps.items()}
    write_safetensors(folder / "unet" / "diffusion_pytorch_model.safetensors", tensors, {})
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    (folder / "model_index.json").write_text(json.dumps(index))


def names(count: int, offset: int = 0) -> list[str]:
    """Pronounceable made-up words, all different."""
    base = len(SYLLABLES)
    return [
        SYLLABLES[i % base] + SYLLABLES[i // base % base] + SYLLABLES[i // base**2 % base]
        for i in range(offset, offset + count)
    ]


def measure(family: str, concepts: int, folder: Path) -> dict[str, object]:
    """Time one closed form, stage by stage, and its peak memory."""
    import torch

    from editforge.artifacts.lora.write import write_lora
    from editforge.families.metric import text_metric
    from editforge.families.model import Model, Origin
    from editforge.families.vocabulary import cache_folder, load_vocabulary
    from editforge.ground.disk import sha256_json
    from editforge.ground.files import write_safetensors
    from editforge.ground.linalg import solve
    from editforge.recipe.contract import Context
    from editforge.recipe.layers import resolve
    from editforge.run.stages import choose, edit, mine

    model = Model(folder, Origin("speed"))
    width = model.family.text_width
    words = tuple(names(CANDIDATES, 1000))
    listing = folder / "words.txt"
    listing.write_text("\n".join(words))
    overrides = {"concepts": [{"name": name} for name in names(concepts)]}
    recipe = resolve(
        "default", {**overrides, "mine": [{"use": "vocabulary", "words": str(listing)}]}, OPTIONS
    )
    vectors = torch.randn(CANDIDATES, width)  # 50,000 words would take minutes to encode here
    kept = tuple(word for word in words if len(model.encoder.tokens(word)) <= 75)
    write_safetensors(
        cache_folder() / f"{sha256_json([model.encoder.digest, kept])}.safetensors",
        {"vectors": vectors},
        {},
    )
    del vectors
    context = Context(model)
    model.encoder.encode_words(words[:1])  # the loaded model is one whose weights have been read
    before = resident()
    reset_peak()
    took: dict[str, float] = {}
    took["metric"] = timed(lambda: text_metric(model))
    took["load words"] = timed(lambda: load_vocabulary(model, str(listing)))
    result: dict[str, object] = {}

    def stage(name, call):
        took[name] = timed(lambda: result.__setitem__(name, call()))
        return result[name]

    stage("mine", lambda: mine(recipe, context))
    targets = stage("choose", lambda: choose(recipe, result["mine"], context))
    peak_choose = peak() - before
    reset_peak()
    before = resident()
    output = stage("edit", lambda: edit(recipe, targets, result["mine"], context))
    system = output.system
    n = system.erased.shape[1]
    shift = system.target - system.erased
    # what a solve costs does not depend on the numbers in its Gram matrix
    solving = {
        "erase_weight": torch.ones(n),
        "preserve_weight": torch.zeros(0),
        "ridge": 1e-2,
        "moment": torch.eye(width, dtype=torch.float64),
    }
    took["factorize"] = timed(lambda: solve(system.erased, system.erased[:, :0], **solving))
    took["products"] = timed(lambda: [products(model.weight(path), shift) for path in model.paths])
    took["write"] = timed(lambda: write_lora(output.edit, folder / "out"))
    peak_edit = peak() - before
    size = (folder / "out" / "pytorch_lora_weights.safetensors").stat().st_size
    flops = width**3 / 3 + 2 * n * width**2  # Cholesky, and its two triangular solves
    flops += sum(2 * model.shape(path)[0] * width * n for path in model.paths)
    return {
        "family": family,
        "concepts": concepts,
        "rank": output.edit.exact_rank,
        "seconds": {key: round(value, 3) for key, value in took.items()},
        "embedding_seconds": round(took["edit"] - took["factorize"] - took["products"], 3),
        "solve_floor": round(flops / rate(torch.float64), 3),
        "write_floor": round(size / write_rate(folder), 3),
        "peak_choose_mb": round(peak_choose / 2**20),
        "peak_edit_mb": round(peak_edit / 2**20),
        "bytes": size,
    }


def products(weight, shift) -> tuple:
    """One map's factor and the norm that the checks need, as the edit computes them."""
    B = weight.double() @ shift
    return B.float(), B.T @ B


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rate(dtype) -> float:
    """Operations a second of a 1024-square product."""
    import torch

    a = torch.randn(1024, 1024, dtype=dtype)
    a @ a
    return 4 * 2 * 1024**3 / timed(lambda: [a @ a for _ in range(4)])


def write_rate(folder: Path) -> float:
    """Bytes a second of a sequential write that reaches the disk."""
    block = os.urandom(2**24)

    def write() -> None:
        with (folder / "rate").open("wb") as file:
            for _ in range(4):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())

    return 4 * 2**24 / timed(write)


def resident() -> int:
    return _status("VmRSS")


def peak() -> int:
    return _status("VmHWM")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key}: this needs Linux")


# Random weights have no meaning to keep: the checks are measured, not obeyed. Two preserved words a
# concept: the default's sixteen are 1,700 for 100 concepts, half an hour of SDXL's text encoders here.
OPTIONS = ["mine.num_preserve=2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=sorted(UNETS))
    parser.add_argument("--concepts", type=int)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        print(json.dumps(measure(args.family, args.concepts, args.folder)))
        return
    rows = []
    for family in [args.family] if args.family else sorted(UNETS):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "model"
            build(family, place)
            for concepts in [args.concepts] if args.concepts else (1, 10, 100):
                command = [
                    sys.executable,
                    __file__,
                    "--family",
                    family,
                    "--concepts",
                    str(concepts),
                ]
                environment = {**os.environ, "XDG_CACHE_HOME": folder, "PYTHONPATH": str(ROOT)}
                done = subprocess.run(
                    [*command, "--folder", str(place)],
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    sys.exit(done.stderr)
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                print(json.dumps(rows[-1]), file=sys.stderr)
    print(table(rows))


def table(rows: list[dict]) -> str:
    head = (
        "| family | concepts | rank | metric | choose | embed | factorize | products | floor | write "
        "| floor | MB choosing | MB editing | MB LoRA |"
    )
    lines = [head, "|---" * 14 + "|"]
    for row in rows:
        s = row["seconds"]
        choosing = s["mine"] + s["choose"]
        cells = [
            row["family"], row["concepts"], row["rank"], s["metric"], round(choosing, 2),
            row["embedding_seconds"], s["factorize"], s["products"], row["solve_floor"], s["write"],
            row["write_floor"], row["peak_choose_mb"], row["peak_edit_mb"],
            round(row["bytes"] / 2**20, 1),
        ]  # fmt: skip
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    main()
