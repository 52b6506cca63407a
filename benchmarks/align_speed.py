"""`make speed`: one training step of RealEra's alignment against its floor, and its memory.

Floor (methods.md 2.6): one batched teacher forward and one batched student forward and backward over
both branches, the same rows, precision and attention, with everything drawn, stacked and placed
beforehand. The step does all the rest besides: picks samples, draws neighbors, gathers texts and
latents, sums, and takes an AdamW step. Both are timed in turns in one process; the table has medians.
Latents of the pool are made once and reported apart.

Memory: the kernel's high-water mark above the loaded pipeline, in a process of its own, of the step
as it is and of the same step whose teacher is a second copy of the denoiser.

Models: the embedded one, and a denoiser with the shape of Stable Diffusion 1.4 at random weights at
256 pixels. Nothing here says anything about quality.

    python benchmarks/align_speed.py                                  # all rows, a Markdown table
    python benchmarks/align_speed.py --model sd14 --batch 1 --steps 6 # one row
    python benchmarks/align_speed.py --game                           # AGE's two turns instead
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
from statistics import median

ROWS = (("emoji", 4, 30), ("emoji", 16, 12), ("sd14", 1, 10))
TEXT = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)


def pipeline(name: str):
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    from editforge import emoji

    base = emoji.load_pipeline()
    if name == "emoji":
        return base, None
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        cross_attention_dim=768,
        block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=8,
    )
    tokenizer = base.tokenizer
    tokenizer.model_max_length = 77
    text = CLIPTextConfig(**TEXT, vocab_size=len(tokenizer), max_position_embeddings=77)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler.from_config(base.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cpu"), "sd1"


def measure(name: str, batch: int, steps: int, precision: str, only: str | None) -> dict:
    import torch

    from editforge.align.objective import ERASE, NEIGHBOR, TARGET, toward
    from editforge.align.options import LoraOptions
    from editforge.align.train import training
    from editforge.artifacts.concepts import Concept
    from editforge.artifacts.low_rank import LowRank
    from editforge.artifacts.neighbors import MinedShell, Neighborhood, Neighbors
    from editforge.artifacts.targets import Preserved, Target, Targets
    from editforge.artifacts.weight_edit import WeightEdit
    from editforge.families.live import LiveModel
    from editforge.recipe.contract import AlignInputs, Context

    torch.set_num_threads(int(os.environ.get("THREADS", os.cpu_count() or 1)))
    pipe, family = pipeline(name)
    model = LiveModel(pipe, family)
    with open("/proc/self/statm") as file:
        loaded = int(file.read().split()[1]) * resource.getpagesize()
    words = ("guitar", "trumpet", "piano", "drum", "horse", "snake", "banana", "hammer")
    shell = MinedShell(
        **dict(radius=15.0, r_lo=5.0, r_hi=15.0, cos_lo=0.7, cos_hi=0.95, num_neighbors=32),
        **dict(num_beyond=1000, beyond_shell_fraction=0.25, out_lo=1.5, out_hi=3.0),
    )
    A = torch.randn(33, model.family.text_width) / 100  # stage 1: the concept and 32 neighbors
    edit = WeightEdit(
        {path: LowRank(torch.randn(len(model.weight(path)), 33) / 100, A) for path in model.paths},
        exact_rank=33,
    )
    inputs = AlignInputs(
        (Concept(name="violin"),),
        Targets(
            concepts=(Target(concept="violin", target="trumpet"),),
            preserve=tuple(Preserved(word=word) for word in words),
        ),
        Neighbors(concepts=(Neighborhood(concept="violin", shell=shell),)),
        edit,
    )
    few = name != "emoji"  # what a run of the pool costs counts, not how many there are
    options = LoraOptions(
        batch=batch,
        precision=precision,
        erase_runs=1 if few else 16,
        keep_runs=1 if few else 16,
        kept_times=2,
        sample_steps=2 if few else 8,
    )
    row = (ERASE, NEIGHBOR)
    objective = toward(row, lambda frozen: frozen[ERASE, TARGET], ((ERASE, TARGET),), 1.0)
    with training(inputs, options, objective, Context(model), 0.5) as loop:
        start = time.perf_counter()
        loop.draw()
        pool = time.perf_counter() - start
        runs = options.erase_runs + options.keep_runs
        other = copy.deepcopy(pipe.unet) if only == "copy" else None

        def floor(rows) -> None:
            with torch.no_grad():
                if other is None:
                    teacher = loop.predict(rows, objective.teacher, grad=False)
                else:
                    loop.denoiser.module, own = other, loop.denoiser.module
                    teacher = loop.predict(rows, objective.teacher, grad=False)
                    loop.denoiser.module = own
            with loop.adapter.student():
                student = loop.predict(rows, objective.student, grad=True)
                objective.parts(teacher, student)["loss"].backward()
            loop.adapter.zero_grad()

        if only is not None:
            for step in range(2):
                floor(loop.rows(range(step * batch, (step + 1) * batch)))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            return {"peak": peak - loaded}
        floors, whole = [], []
        for step in range(steps + 2):
            rows = loop.rows(range(step * batch, (step + 1) * batch))
            start = time.perf_counter()
            floor(rows)
            floors.append(time.perf_counter() - start)
            start = time.perf_counter()
            loop.step(step)
            whole.append(time.perf_counter() - start)
    return {
        "floor": median(floors[2:]),
        "step": median(whole[2:]),
        "pool": pool / runs / options.sample_steps * 50,
    }


def measure_game(name: str, batch: int, steps: int, precision: str) -> dict:
    """A turn of each player of `align: age` against its floor: its own rows, made beforehand."""
    import torch

    from editforge.align.age import AgeConfig, candidates_of, scale_of, turns_of
    from editforge.align.mixture import Mixture
    from editforge.align.train import Loop, Opponent, prepared
    from editforge.artifacts.concepts import Concept
    from editforge.artifacts.neighbors import Neighbor, Neighborhood, Neighbors
    from editforge.artifacts.targets import Target, Targets
    from editforge.artifacts.weight_edit import WeightEdit
    from editforge.families.live import LiveModel
    from editforge.recipe.contract import AlignInputs, Context

    torch.set_num_threads(int(os.environ.get("THREADS", os.cpu_count() or 1)))
    pipe, family = pipeline(name)
    context = Context(LiveModel(pipe, family))
    words = ("guitar", "trumpet", "piano", "drum", "horse", "snake", "banana", "hammer")
    near = tuple(
        Neighbor(word=w, role="preserve", candidate=True, similarity=0.5, displacement=1.0)
        for w in words
    )
    concept = Concept(name="violin")
    inputs = AlignInputs(
        (concept,),
        Targets(concepts=(Target(concept="violin", target="trumpet"),)),
        Neighbors(concepts=(Neighborhood(concept="violin", words=near),)),
        WeightEdit({}, exact_rank=0),
    )
    few = name != "emoji"
    config = AgeConfig(
        batch=batch,
        precision=precision,
        erase_runs=1 if few else 16,
        lead_runs=1 if few else 8,
        kept_times=2,
        sample_steps=2 if few else 8,
        pi_lr=1e-6,  # nobody else comes to lead while this is timed
    )
    with prepared(inputs, config, context) as (denoiser, model, prompts):
        own = candidates_of(concept, inputs, config, prompts, denoiser, context)
        mixture = Mixture({"violin": own}, temperature=0.1, hard=False, topk=2, seed=0)
        turns = turns_of(config, scale_of(config.space, denoiser))
        against = Opponent(mixture, config.pi_lr, config.quiet_from, config.lead_runs)
        loop = Loop(config, turns, context, denoiser, model, prompts, against)
        loop.draw()
        floors: tuple[list[float], ...] = ([], [])
        whole: tuple[list[float], ...] = ([], [])
        loop.step(0)  # draws the latents of the candidate that leads
        for step in range(1, 2 * steps + 5):
            turn = turns[step % 2]
            for other, player in loop.state.players.items():
                player.opened(other == turn.player)
            loop.gather.lead()
            rows = loop.rows(range(step * batch, (step + 1) * batch), turn)
            start = time.perf_counter()
            teacher = loop.predict(rows, turn.objective.teacher, turn, grad=bool(turn.teacher))
            with model.student():
                student = loop.predict(rows, turn.objective.student, turn, grad=True)
                turn.objective.parts(teacher, student)["loss"].backward()
            floors[step % 2].append(time.perf_counter() - start)
            model.zero_grad()
            mixture.zero_grad()
            start = time.perf_counter()
            loop.step(step)
            whole[step % 2].append(time.perf_counter() - start)
    return {
        player: [median(floors[at][2:]), median(whole[at][2:])]
        for at, player in enumerate(("model", "mixture"))
    }


def game_table(rows, precision: str) -> None:
    print(
        "| model | batch | turn of | floor, ms | step, ms | overhead |\n|---|---|---|---|---|---|"
    )
    for name, batch, steps in rows:
        for player, (floor, step) in measure_game(name, batch, steps, precision).items():
            over = step / floor - 1
            print(
                f"| {name} | {batch} | {player} | {1e3 * floor:.0f} | {1e3 * step:.0f} | {over:+.1%} |"
            )


def table(rows, precision: str) -> None:
    print(
        "| model | batch | floor, ms | step, ms | overhead | peak, MB | with a copy | pool, s a run |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name, batch, steps in rows:
        call = [sys.executable, __file__, "--model", name, "--batch", str(batch)]
        call += ["--steps", str(steps), "--precision", precision]
        times, one, two = (
            json.loads(subprocess.check_output([*call, *more], text=True).splitlines()[-1])
            for more in (["--json"], ["--memory", "one"], ["--memory", "copy"])
        )
        over = times["step"] / times["floor"] - 1
        print(
            f"| {name} | {batch} | {1e3 * times['floor']:.0f} | {1e3 * times['step']:.0f} "
            f"| {over:+.1%} | {one['peak'] / 1e6:.0f} | {two['peak'] / 1e6:.0f} "
            f"| {times['pool']:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=("emoji", "sd14"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--memory", choices=("one", "copy"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--game", action="store_true", help="AGE's turns instead of RealEra's step")
    args = parser.parse_args()
    if args.game:
        asked = ((args.model, args.batch, args.steps),) if args.model else ROWS
        game_table(asked, args.precision)
        return
    if args.json or args.memory:
        found = measure(args.model, args.batch, args.steps, args.precision, args.memory)
        print(json.dumps(found))
    else:
        rows = [(args.model, args.batch, args.steps)] if args.model else ROWS
        table(rows, args.precision)


if __name__ == "__main__":
    main()
