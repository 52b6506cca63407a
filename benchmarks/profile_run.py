"""Where the wall time of one `editforge erase violin` goes: `python benchmarks/profile_run.py`.

One process under cProfile, which costs a few percent. Each row is time inside the named functions, from
entering the first of them to leaving it; rows do not overlap, and what no row claims is `other`.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import tempfile
import time

from editforge.cli.main import main

# what a person would call it: (file ends with, function)
ROWS = {
    "drawing": [("draw.py", "_draw"), ("generate.py", "_draw")],
    "encoding text": [("families/encode.py", "encode")],
    "hashing": [("disk.py", "sha256_file"), ("draw.py", "weights_digest")],
    "judging": [("judges/emoji.py", "probabilities"), ("judges/emoji.py", "features")],
    "writing pictures": [("evaluate/grid.py", "_png")],
    "loading models": [("pipeline_utils.py", "from_pretrained"), ("emoji/assets.py", "load_judge")],
    "importing": [("<frozen importlib._bootstrap>", "_find_and_load")],
}


def run() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["editforge", "erase", "violin", "--output", f"{folder}/run", "-q"]
        profile, start = cProfile.Profile(), time.perf_counter()
        profile.enable()
        try:
            main()
        except SystemExit:
            pass
        profile.disable()
        wall = time.perf_counter() - start
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    spent = {name: _inside(stats, places) for name, places in ROWS.items()}
    spent["other"] = wall - sum(spent.values())
    for name, seconds in sorted(spent.items(), key=lambda row: -row[1]):
        print(f"{name:<18}{seconds:8.2f} s {seconds / wall:7.1%}")
    print(f"{'wall':<18}{wall:8.2f} s")


def _inside(stats: dict, places: list[tuple[str, str]]) -> float:
    """Cumulative seconds of the functions, less what their callers among the same rows count."""
    return sum(
        cumulative
        for (file, _, function), (_, _, _, cumulative, _) in stats.items()
        if any(file.endswith(end) and function == name for end, name in places)
    )


if __name__ == "__main__":
    run()
