"""`make full-size`: the command itself on models of the full size: wall time, peak memory, bytes.

Complete pipeline folders in the published shapes of SD 1.4 and SDXL, random float16 weights, a
tokenizer of CLIP's 49,408 pieces: what `editforge erase` takes from a user's disk, memory and patience.
Nothing here says anything about quality. SD 1.4 has no safety checker here, which is only ever copied.

Each command is a process of its own, watched from outside: the kernel's high-water mark of the whole,
and the most that was seen in each stage. "Loaded" is another process, which opens the model and reads
one word: headers and text encoders. Wall times are given beside a plain copy of the base's bytes to the
same disk, flushed; the floor of the bytes is the base's own.

    python benchmarks/full_size.py                      # both families, a Markdown table
    python benchmarks/full_size.py --family sd14
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.speed import SYLLABLES, names, resident  # noqa: E402

PUBLISHED = {"sd14": "sd-1.4", "sdxl": "sdxl-base-1.0"}
PIECES = 49_408
WHOLE_WORDS = 30_000  # about what CLIP's vocabulary has of three letters or more
CONCEPTS = 10
ALL = "lora,single-file,pipeline"
# Random weights bound nothing: the limits of trained models are told so.
LOOSE = [
    "--set=edit.limits.residual=[10, 100]",
    "--set=edit.limits.change=[10, 100]",
    "--set=edit.limits.amplification=[50, 1000]",
    "--set=edit.limits.condition=[1e14, 1e15]",
]
# (what it is called, method, exports, whether words and background are in the user's cache)
COMMANDS = [
    ("default, cold cache", "default", "lora", False),
    ("default", "default", ALL, True),
    ("uce", "uce", ALL, True),
]


def build(family: str, folder: Path) -> None:
    """Write a whole pipeline folder, one tensor in memory at a time."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    body = json.loads((ROOT / "tests" / "published" / f"{PUBLISHED[family]}.json").read_text())
    index = {"_diffusers_version": "0.38.0", **body["model_index"]}
    if "safety_checker" in index:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        index["requires_safety_checker"] = False
    torch.manual_seed(0)
    classes = {"CLIPTextModel": CLIPTextModel}
    classes["CLIPTextModelWithProjection"] = CLIPTextModelWithProjection
    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel.from_config(body["unet"]),
            "vae": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
                sample_size=512 if family == "sd14" else 1024,
            ),
        }
        for name in (name for name in index if name.startswith("text_encoder")):
            raw = {key: v for key, v in body[name].items() if key != "model_type"}
            parts[name] = classes[index[name][1]](CLIPTextConfig(**raw))
    for name, module in parts.items():
        module.config.architectures = [type(module).__name__]
        stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
        _stream(module, folder / name / f"{stem}.safetensors")
        if name.startswith("text"):
            module.config.save_pretrained(folder / name)
        else:
            module.save_config(folder / name)
    for name in (name for name in index if name.startswith("tokenizer")):
        tokenizer(body[name].get("pad_token", "<|endoftext|>")).save_pretrained(folder / name)
    (folder / "scheduler").mkdir()
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(body["scheduler"]))
    (folder / "model_index.json").write_text(json.dumps(index))


def _stream(module, path: Path) -> None:
    """Random float16 weights under the module's own names and shapes: stretches of one long row."""
    import torch

    from editforge.ground.files import LazyTensor, write_safetensors

    row = torch.randn(2**24).mul_(0.02).half()

    def random(name: str, shape: tuple[int, ...], place: int) -> torch.Tensor:
        if len(shape) == 1:  # a norm, or a bias
            kind = torch.ones if name.endswith("weight") else torch.zeros
            return kind(shape, dtype=torch.float16)
        count = torch.Size(shape).numel()
        if count > len(row):
            return row.repeat(-(-count // len(row)))[:count].reshape(shape)
        start = place * 100_003 % (len(row) - count + 1)
        return row[start : start + count].reshape(shape)

    def lazy(name: str, shape: tuple[int, ...], place: int) -> LazyTensor:
        return LazyTensor(torch.float16, shape, lambda: random(name, shape, place))

    state = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    tensors = {name: lazy(name, state[name], at) for at, name in enumerate(state)}
    write_safetensors(path, tensors, {})


def tokenizer(pad_token: str):
    """CLIP's kind and size: 30,000 whole words of two and three syllables, and pieces of words."""
    from transformers import CLIPTokenizer

    from tests.tiny import tiny_tokenizer

    known = sorted(tiny_tokenizer().get_vocab().items(), key=lambda item: item[1])
    letters = [piece for piece, _ in known[:512]]  # bytes, and bytes that end a word
    merges: list[tuple[str, str]] = []
    for end in ("", "</w>"):
        merges += [(text[0], text[1] + end) for text in SYLLABLES]
    for end in ("", "</w>"):
        merges += [(a, b + end) for a in SYLLABLES for b in SYLLABLES]
    pairs = [a + b for a in SYLLABLES for b in SYLLABLES]
    longer = ((pair, last) for last in SYLLABLES for pair in pairs)
    whole = WHOLE_WORDS - len(pairs)
    rest = PIECES - 2 - len(letters) - len(merges)
    for count, (pair, last) in zip(range(rest), longer, strict=False):
        merges.append((pair, last + ("</w>" if count < whole else "")))
    pieces = [*letters, *(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>"]
    assert len(set(pieces)) == PIECES
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=merges,
        pad_token=pad_token,
        model_max_length=77,
    )


def loaded(folder: Path) -> dict[str, int]:
    """Bytes resident once headers and text encoders are there, and have read one word."""
    from editforge.families.config import ModelConfig
    from editforge.families.open import open_model

    with open_model(ModelConfig(id=str(folder), device="cpu")) as model:
        model.encoder.encode_words(names(1))
        words = len(model.encoder.vocabulary())
        now = status(os.getpid())
        return {"resident": resident(), "own": now["RssAnon"], "words": words}


def status(pid: int) -> dict[str, int]:
    """Bytes by the kernel's name: VmRSS and its parts; nothing once the process has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {key: int(n) * 1024 for key, n in re.findall(r"(\w+):\s+(\d+) kB", text)}


def watched(command: list[str], environment: dict[str, str], run: Path) -> dict[str, object]:
    """Run a command to its end: seconds, its peak, and the peak of each stage at 20 looks a second."""
    log = run.with_suffix(".log")
    start = time.perf_counter()
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        seen: dict[str, dict[str, int]] = {}
        while True:
            pid, code, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            at_work = (p.name.split(".")[1] for p in run.glob(".*.partial") if p.is_dir())
            stage = next(at_work, "outside")
            row, peak = status(process.pid), seen.setdefault(stage, {})
            for key in ("VmRSS", "RssAnon"):
                peak[key] = max(peak.get(key, 0), row.get(key, 0))
            time.sleep(0.05)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(code):
        sys.exit(f"{' '.join(command)}\n{log.read_text()[-4000:]}")
    return {
        "seconds": round(seconds, 1),
        "stages": json.loads((run / "log" / "timings.json").read_text()),
        "peak": usage.ru_maxrss * 1024,
        "own": max(row["RssAnon"] for row in seen.values()),
        "by_stage": seen,
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
    }


def measure(family: str, place: Path, commands: list[tuple[str, str, str, bool]]) -> dict:
    """All commands on one family; everything that was written is deleted again."""
    base, cache = place / "base", place / "cache"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment["XDG_CACHE_HOME"] = str(cache)
    took = {"build": timed(lambda: build(family, base))}
    size = size_of(base)
    took["copy"] = timed(lambda: copy(base, place / "copy"))
    shutil.rmtree(place / "copy")
    script = [sys.executable, __file__, "--loaded", str(base)]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    floor = json.loads(done.stdout.splitlines()[-1])
    rows = []
    for number, (title, method, export, warm) in enumerate(commands):
        if not warm:
            shutil.rmtree(cache, ignore_errors=True)
        run = place / f"run{number}"
        command = [sys.executable, "-m", "editforge", "erase", *names(CONCEPTS), "--quiet"]
        command += ["--model", str(base), "--device=cpu", "--method", method, "--export", export]
        command += ["--set=evaluate=null", f"--output={run}"]
        command += [f"--target={names(1, 500)[0]}"] if method == "uce" else []
        command += LOOSE
        row = {"family": family, "what": title, "export": export}
        row |= watched(command, environment, run)
        row["bytes"] = {
            folder.name: size_of(folder)
            for folder in (run / "package").iterdir()
            if folder.is_dir()
        }
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
        shutil.rmtree(run)
    return {"family": family, "base": size, "took": took, "loaded": floor, "rows": rows}


def copy(source: Path, target: Path) -> None:
    """A plain copy whose bytes have reached the disk."""
    shutil.copytree(source, target)
    for path in target.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return round(time.perf_counter() - start, 1)


def table(found: list[dict]) -> str:
    head = (
        "| model | command | seconds | mine, target | edit | package | copies of the base "
        "| peak MB | above loaded | written MB | times the base |"
    )
    lines = [head, "|---" * 11 + "|"]
    for one in found:
        for row in one["rows"]:
            s, written = row["stages"], sum(row["bytes"].values())
            cells = [
                one["family"], f"{row['what']}: {row['export']}", row["seconds"],
                round(s.get("mine", 0) + s.get("target", 0), 1), round(s["edit"], 1),
                round(s["package"], 1), round(s["package"] / one["took"]["copy"], 2),
                mb(row["peak"]), mb(row["peak"] - one["loaded"]["resident"]), mb(written),
                round(written / one["base"], 2),
            ]  # fmt: skip
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    for one in found:
        lines.append(
            f"\n{one['family']}: base {mb(one['base'])} MB, copied in {one['took']['copy']} s; loaded "
            f"{mb(one['loaded']['resident'])} MB; the tokenizer has {one['loaded']['words']} words."
        )
    return "\n".join(lines)


def mb(count: int) -> int:
    return round(count / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=sorted(PUBLISHED))
    parser.add_argument("--only", nargs="*", help="numbers of the commands, from 0")
    parser.add_argument("--loaded", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loaded:
        print(json.dumps(loaded(args.loaded)))
        return
    commands = [row for at, row in enumerate(COMMANDS) if not args.only or str(at) in args.only]
    found = []
    for family in [args.family] if args.family else sorted(PUBLISHED):
        with tempfile.TemporaryDirectory(prefix="editforge-full-size-") as folder:
            found.append(measure(family, Path(folder), commands))
        print(json.dumps(found[-1]), file=sys.stderr)
    print(f"\nload of the machine now: {os.getloadavg()}\n", file=sys.stderr)
    print(table(found))


if __name__ == "__main__":
    main()
