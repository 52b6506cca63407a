"""Manners: data on stdout, everything else on stderr, one JSON object last, five exit codes."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from editforge.ground.errors import EditforgeError

DONE, GATE_FAILED, BAD_INPUT, BUG, INTERRUPTED = 0, 1, 2, 70, 130


class Output:
    """What one command prints.

    Args:
        as_json: the last line of stdout is one JSON object, and nothing else goes there.
        quiet: errors only on stderr.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self._json, self.quiet = as_json, quiet

    def say(self, line: str) -> None:
        """Progress, decisions, warnings, hints: stderr."""
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def data(self, text: str) -> None:
        """The result for a person: stdout, unless JSON was asked for."""
        if not self._json:
            print(text)

    def json(self, value: Mapping[str, Any]) -> None:
        """The result for a program."""
        if self._json:
            print(json.dumps(value, sort_keys=True, allow_nan=False))

    def failed(
        self,
        code: int,
        error: BaseException,
        what: str,
        got: object = None,
        allowed: object = None,
        next: str | None = None,
    ) -> int:
        """A failure for a program, in the four parts of our errors; returns the exit code."""
        parts = {"what": what, "got": got, "allowed": allowed, "next": next}
        words = {key: value if value is None else str(value) for key, value in parts.items()}
        self.json({"error": {"type": type(error).__name__, **words}, "exit": code})
        return code

    def hint(self, command: str) -> None:
        """The next command, ready to paste."""
        self.say(f"next: {command}")


def guarded(call: Callable[[], int], *, as_json: bool = False) -> int:
    """Run one command; turn what a user can mend into a message, never into a traceback.

    EDITFORGE_DEBUG=1 (or --debug) shows the traceback of those too. Anything else is a bug: it shows
    its own, and exits with 70, so that no script takes it for a failed gate. `as_json` ends stdout
    with one JSON object for a failure as well.
    """
    out = Output(as_json=as_json)
    try:
        return call()
    except EditforgeError as error:
        _show(f"{type(error).__name__}: {error}")
        return out.failed(BAD_INPUT, error, error.what, error.got, error.allowed, error.next)
    except KeyboardInterrupt as error:
        what, step = "interrupted", "the same command goes on from here"
        _show(f"{what}; {step}")
        return out.failed(INTERRUPTED, error, what, next=step)
    except OSError as error:
        kinds = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EROFS: "the disk is read-only",
            errno.EACCES: "no permission",
            errno.EPERM: "no permission",
            errno.EFBIG: "the file is larger than this system allows",
        }
        if error.errno not in kinds:
            traceback.print_exc()
            return out.failed(BUG, error, str(error))
        what, got = kinds[error.errno], error.filename or error
        step = (
            "make room or choose --output ELSEWHERE, then run the same command: "
            "finished stages are kept"
        )
        _show(f"{what}\n  got:     {got}\n  next:    {step}")
        return out.failed(BAD_INPUT, error, what, got, next=step)
    except Exception as error:
        traceback.print_exc()
        return out.failed(BUG, error, str(error))


def _show(text: str) -> None:
    if os.environ.get("EDITFORGE_DEBUG"):
        traceback.print_exc()
    print(text, file=sys.stderr)


def quiet_libraries() -> None:
    """Keep the libraries' own bars and notices off the user's terminal; errors still show."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for module in (diffusers_logging, transformers_logging):
        module.set_verbosity_error()
        module.disable_progress_bar()
