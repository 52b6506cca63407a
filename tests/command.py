"""The `editforge` command in a forked child of a process that has imported everything once.

A fresh Python with torch and diffusers takes four seconds to start, a fork some milliseconds. Each
command still has a process of its own: arguments, streams, exit code and signals are real. Tests of
what an import costs start a fresh Python instead (`fresh`).

    done = editforge("erase", "violin", cwd=tmp_path)      # done.code, out, err, json
    running = start("erase", "violin", cwd=tmp_path)       # running.pid; running.wait()

`before` is Python source that the child runs first: to kill itself at an instant, to fill a disk.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "200",
    "NO_COLOR": "1",
}
# The cheapest whole run: a typed target, a short list, no pictures. About a second.
QUICK = ("--method", "uce", "--target", "trumpet", "--preserve", "guitar", "--set", "mine=null")
UNJUDGED = ("--set", "evaluate=null")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out.rstrip("\n").rpartition("\n")[2])


@dataclass(frozen=True)
class Running:
    pid: int
    folder: Path

    def wait(self, timeout: float = 300) -> Done:
        deadline = time.monotonic() + timeout
        while not (self.folder / "code").is_file():
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError((self.folder / "err").read_text(errors="replace"))
            time.sleep(0.005)
        texts = [(self.folder / name).read_text(encoding="utf-8") for name in ("out", "err")]
        return Done(int((self.folder / "code").read_text()), *texts)


def start(*args: str, cwd: Path, before: str = "", stdin: str = "") -> Running:
    """Start `editforge ARGS` in `cwd`."""
    server, scratch = _server()
    folder = Path(tempfile.mkdtemp(dir=scratch))
    (folder / "in").write_text(stdin)
    task = {"args": args, "cwd": str(cwd), "before": before, "folder": str(folder)}
    server.stdin.write(json.dumps(task) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    if not answer:
        raise RuntimeError("the command server ended")
    return Running(int(answer), folder)


def editforge(*args: str, cwd: Path, before: str = "", stdin: str = "") -> Done:
    """Run `editforge ARGS` in `cwd` to its end. A negative code is the signal that ended it."""
    return start(*args, cwd=cwd, before=before, stdin=stdin).wait()


def fresh(*args: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A new Python of this environment; nothing imported before."""
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env={**os.environ, **ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@cache
def _server() -> tuple[subprocess.Popen[str], str]:
    scratch = tempfile.TemporaryDirectory(prefix="editforge-commands-")
    server = subprocess.Popen(
        [sys.executable, __file__],
        env={**os.environ, **ENVIRONMENT},
        cwd=scratch.name,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def end() -> None:
        server.stdin.close()
        server.wait(timeout=30)
        scratch.cleanup()

    atexit.register(end)
    return server, scratch.name


def _serve() -> None:
    from editforge.cli.output import quiet_libraries

    quiet_libraries()
    import diffusers
    import torch

    import editforge.evaluate.gate
    import editforge.hub.push
    import editforge.package.inspect
    import editforge.run.plan
    import editforge.run.saved  # noqa: F401
    from editforge.recipe import registry

    torch.set_num_threads(1)
    _ = diffusers.StableDiffusionPipeline, diffusers.DPMSolverMultistepScheduler
    for stage in ("mine", "target", "edit"):
        for name in registry.names(stage):
            with contextlib.suppress(Exception):  # another room's work in progress
                registry.get(stage, name)
    answers = os.fdopen(os.dup(1), "w")
    running: dict[int, Path] = {}
    buffer = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.005 if running else None)
        if ready:
            data = os.read(0, 65536)
            if not data:
                return
            buffer += data
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            task = json.loads(line)
            pid = os.fork()
            if pid == 0:
                _child(task)
            running[pid] = Path(task["folder"])
            answers.write(f"{pid}\n")
            answers.flush()
        for pid, folder in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del running[pid]
                (folder / "code.new").write_text(str(os.waitstatus_to_exitcode(status)))
                (folder / "code.new").rename(folder / "code")


def _child(task: dict[str, Any]) -> None:
    code = 70
    try:
        folder = Path(task["folder"])
        for stream, name in ((0, "in"), (1, "out"), (2, "err")):
            flags = os.O_RDONLY if stream == 0 else os.O_WRONLY | os.O_CREAT
            os.dup2(os.open(folder / name, flags, 0o666), stream)
        os.chdir(task["cwd"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["editforge", *task["args"]]
        exec(task["before"], {"__name__": "before"})
        from editforge.cli.main import main

        main()
    except SystemExit as leave:
        code = int(leave.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
