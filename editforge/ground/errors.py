"""What the user gets instead of a traceback: what went wrong, what we got, what is allowed, what next.

The command line prints an `EditforgeError` without a traceback and exits with 2. Anything else that
escapes is a bug and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EditforgeError(Exception):
    """A refusal with its reason. The four parts print one a line, empty ones are left out.

    Args:
        what: what went wrong, one sentence, lower case, no period.
        got: the offending value, with the file or key it came from.
        allowed: the legal values, or the nearest match.
        next: what to do now, ready to paste where possible.
    """

    def __init__(
        self,
        what: str,
        *,
        got: object | None = None,
        allowed: object | None = None,
        next: str | None = None,
    ) -> None:
        self.what, self.got, self.allowed, self.next = what, got, allowed, next
        parts = [("got", got), ("allowed", allowed), ("next", next)]
        lines = [f"  {f'{label}:':<9}{value}" for label, value in parts if value not in (None, "")]
        super().__init__("\n".join([what, *lines]))


class RecipeError(EditforgeError):
    """What the user asked for cannot be: a key, a value, a name, a combination."""


class PresetUnavailable(RecipeError):
    """A preset that would need constants nobody published; they are listed, none is invented."""


class FamilyError(EditforgeError):
    """The model is not one we know, or not in the shape we know it in."""


class EditError(EditforgeError):
    """The mathematics refuses: singular, exploding, not erasing, nothing to erase."""


class PackageError(EditforgeError):
    """An artifact or a file is damaged, foreign, leaking, or cannot be expressed in a format."""


class HubError(EditforgeError):
    """The Hub refused, or what arrived is not what was sent."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest known names as a question, then all of them: `did you mean uce? known: age, uce`."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    listed = ", ".join(names) if names else "none"
    return f"did you mean {' or '.join(close)}? known: {listed}" if close else f"known: {listed}"
