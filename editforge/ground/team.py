"""The processes of one run, as `accelerate launch` started them: which one this is, waiting, summing.

One process is a team of one, imports nothing and waits for nobody. In a larger one process 0 owns the
run's folder and decides; the others follow. Nothing random depends on a rank, so the number of
processes changes the order of sums alone.

A process that dies closes its connections. Whoever waits for it gets an `EditforgeError` instead of
hanging, also when the launcher stops the survivors first.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from editforge.ground.errors import EditforgeError

if TYPE_CHECKING:
    from torch import Tensor

# Process 0 may mine and solve for long while the others wait; a death is noticed without this limit.
_PATIENCE = timedelta(hours=6)


_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


class ProcessLost(EditforgeError):
    """Another process of the run ended, so this one stops too."""


class Team:
    """All processes of a run.

    Args:
        rank: of this process, from 0.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def join(cls, device: str = "auto") -> Team:
        """The team the launcher made, or a team of one.

        Args:
            device: `cpu` keeps the processes on the CPU where there is a GPU.
        """
        if max(int(os.environ.get(name, "1")) for name in _SIZES) <= 1:
            return cls()
        import torch
        from accelerate import PartialState

        on_cpu = device == "cpu" or not torch.cuda.is_available()
        with _told_of_a_death():
            state = PartialState(cpu=on_cpu, timeout=_PATIENCE)
        signal.signal(signal.SIGTERM, _stopped)
        return cls(state.process_index, state.num_processes)

    @property
    def leads(self) -> bool:
        """Whether this process owns the run's folder."""
        return self.rank == 0

    def wait(self) -> None:
        """Return once every process has come here."""
        if self.size > 1:
            from accelerate import PartialState

            with _told_of_a_death():
                PartialState().wait_for_everyone()

    def tell(self, value: Any) -> Any:
        """What process 0 passed, in every process; what the others pass is ignored."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        box = [value]
        with _told_of_a_death():
            broadcast_object_list(box)
        return box[0]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, the same bits in each."""
        if self.size == 1:
            return tensor
        from accelerate.utils import reduce

        with _told_of_a_death():
            total: Tensor = reduce(tensor, "sum")
        return total


@contextmanager
def _told_of_a_death() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.distributed's errors are RuntimeErrors
        raise _lost(" ".join(str(error).split())[:200]) from None


def _stopped(number: int, frame: object) -> None:
    raise _lost("the launcher stopped this one")


def _lost(got: str) -> ProcessLost:
    return ProcessLost(
        "another process of this run ended",
        got=got,
        next="its own message says why; the same command goes on from the last checkpoint",
    )


def launch_notes() -> list[str]:
    """What of the launcher's settings has no effect here, one line each; empty without a launcher.

    `accelerate launch --cpu --num_processes 2` starts one process without mpirun (accelerate 1.15). FSDP
    and DeepSpeed would shard what is a few megabytes, or a denoiser that sampling needs whole anyway.
    """
    env, notes = os.environ, []
    asked = env.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in env
    if asked and not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & set(env):
        notes.append(
            "accelerate started one process: with --cpu it needs mpirun for more. "
            "Without a GPU too: accelerate launch --multi_gpu --num_processes 2"
        )
    for name in ("FSDP", "DEEPSPEED"):
        if env.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            notes.append(f"{name} is not used: every process holds the whole denoiser")
    return notes
