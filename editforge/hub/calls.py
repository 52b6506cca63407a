"""The Hub client's calls with bounded patience, and its failures in our own four parts.

The HTTP library below the client has changed from requests to httpx to httpx2, so nothing of it is
named here: whatever it is, `HfHubHTTPError` derives from its common error. What the Hub says is cut
short and cleaned of the token before anybody sees it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import TypeVar

from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from editforge.errors import HubError

ATTEMPTS = 5
# The first base is the HTTP library's own error, of which lost connections and timeouts are kinds.
_TRANSPORT: type[BaseException] = HfHubHTTPError.__bases__[0]
_AGAIN = "run the same command again: what has arrived is not sent twice"
_NEXT = {
    400: "read what the Hub says above, correct the package, and push again",
    401: "hf auth login, or set HF_TOKEN",
    403: "use a token with write access to that account: hf auth login",
    404: "check the owner and the name, and that your token may see the repository",
    412: f"somebody changed the repository meanwhile; look at it, then {_AGAIN}",
}
Result = TypeVar("Result")


class Line:
    """Calls the Hub, again while it is busy or out of reach, never after a refusal.

    Args:
        say: takes one line for the user.
        pause: seconds before the first repetition; each further one waits twice as long.
    """

    def __init__(self, say: Callable[[str], None], pause: float) -> None:
        self._say, self._pause = say, pause

    def call(self, what: str, action: Callable[[], Result], *, once: bool = False) -> Result:
        """Run `action`; repeat it on 429, 5xx and lost connections, at most ATTEMPTS times in all.

        Args:
            what: the attempt in words, `create the repository`.
            action: must be safe to repeat.
            once: it is not, because a lost answer may hide a success: only a 429 is repeated.

        Raises:
            HubError: the Hub refused, or stayed away. Anything else is a bug and passes unchanged.
        """
        for attempt in count(1):
            try:
                return action()
            except Exception as error:
                failure = _hub_failure(error)
                if failure is None:
                    raise
                status = _status(failure)
                busy = status == 429 or (not once and (status is None or status >= 500))
                offline = isinstance(failure, OfflineModeIsEnabled)
                if offline or not busy or attempt == ATTEMPTS:
                    raise _refusal(what, status, error, failure) from None
            seconds = self._pause * 2 ** (attempt - 1)
            self._say(f"{what}: {status or 'connection lost'}, again in {seconds:g} s")
            time.sleep(seconds)
        raise AssertionError("unreachable")


def clean(text: str) -> str:
    """One short line without the token, whatever a server echoes."""
    token = get_token()
    line = " ".join(text.split())
    return (line.replace(token, "[token]") if token else line)[:300]


def _hub_failure(error: BaseException) -> BaseException | None:
    """The HTTP failure in a chain of causes: the client wraps those of uploads and downloads."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, (_TRANSPORT, ConnectionError)):
        link = link.__cause__
    return link


def _status(failure: BaseException) -> int | None:
    if isinstance(failure, HfHubHTTPError):
        return int(failure.response.status_code)
    return None


def _refusal(
    what: str, status: int | None, error: BaseException, failure: BaseException
) -> HubError:
    said = getattr(failure, "server_message", None) or (str(error) if status is None else "")
    if status is None:
        return HubError(
            f"cannot {what}: the Hub is out of reach",
            got=clean(f"{type(failure).__name__}: {said}"),
            next=_AGAIN,
        )
    return HubError(
        f"cannot {what}: the Hub answered {status}",
        got=clean(said) or None,
        next=_NEXT.get(status, _AGAIN),
    )
