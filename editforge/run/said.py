"""What a run tells its user before it erases: what was chosen, and why; and who hears it in Python."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from editforge.recipe.line import LISTS
from editforge.run.job import Job


def say_lists(job: Job, say: Callable[[str], None]) -> None:
    """What was chosen, and why, and what of it a person changed."""
    for stage, said in job.hand.items():
        say(f"by hand, {stage}/{LISTS[stage]}: {'; '.join(said)}")
    if job.targets is None:
        return
    for row in job.targets.concepts:
        what = repr(row.target) if row.target else "nothing"
        say(f"{row.concept!r} becomes {what}: {row.reason}")
        seen = [c for c in row.candidates if c.itself is not None]
        place = "; all in target/targets.yaml" if job.folders else ""
        if seen:
            told = ", ".join(f"{c.word} ({c.reason})" if c.reason else c.word for c in seen[:4])
            say(f"  looked at: {told}{place}")
        elif row.candidates:
            best = ", ".join(f"{c.word} {c.score:.3g}" for c in row.candidates[:4])
            say(f"  predicted damage: {best}{place}")
    words = job.targets.preserved
    more = f" and {len(words) - 8} more" if len(words) > 8 else ""
    say(f"preserved: {', '.join(words[:8]) or 'nothing'}{more}")


def to_logger(line: str) -> None:
    """One line of a stage to the logger `editforge`: WARNING if it warns or notes, else INFO.

    The first line sets the level to INFO if the user has set none, and adds a handler that prints to
    stderr while the program has no other. Importing changes nothing.
    """
    logger = logging.getLogger("editforge")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_Unheard())
    found = line.lstrip().startswith(("warning:", "note:"))
    logger.log(logging.WARNING if found else logging.INFO, "%s", line)


class _Unheard(logging.Handler):
    """To stderr as it is now, where no other handler of the program gets the record."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = logging.getLogger(record.name)
        if logger.handlers == [self] and not (logger.propagate and logging.root.handlers):
            print(self.format(record), file=sys.stderr, flush=True)
