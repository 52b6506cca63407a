"""The Hub client's calls with bounded patience, and its failures in our own four parts.

Nothing of the HTTP library below the client is named here. What the Hub says is cut
short and cleaned of the token before anybody sees it. Where it says how long it wants to be left
alone, that is how long we wait; the client parses the same two headers, but not for every call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers

from editforge.ground.errors import HubError
from editforge.ground.places import transport_error

ATTEMPTS = 5  # where the Hub does not say how long to wait
PATIENCE = 600  # seconds in all that one Line waits because the Hub asked for it
_TRANSPORT = transport_error()
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
        self._waited = 0.0

    def call(self, what: str, action: Callable[[], Result], *, once: bool = False) -> Result:
        """Run `action`; repeat it on 429, 5xx and lost connections.

        A wait that the Hub asks for is kept to and costs no attempt, up to PATIENCE seconds in all;
        without one, pauses double, and ATTEMPTS refusals are the end.

        Args:
            what: the attempt in words, `create the repository`.
            action: must be safe to repeat.
            once: it is not, because a lost answer may hide a success: only a 429 is repeated.

        Raises:
            HubError: the Hub refused, or stayed away. Anything else is a bug and passes unchanged.
        """
        attempt = 1
        while True:
            try:
                return action()
            except Exception as error:
                failure = _hub_failure(error)
                if failure is None:
                    raise
                status, asked = _status(failure), _asked_wait(failure)
                busy = status == 429 or (not once and (status is None or status >= 500))
                offline = isinstance(failure, OfflineModeIsEnabled)
                out_of_patience = (
                    attempt == ATTEMPTS if asked is None else self._waited + asked > PATIENCE
                )
                if offline or not busy or out_of_patience:
                    raise _refusal(what, status, error, failure, asked if busy else None) from None
            if asked is None:
                seconds = self._pause * 2 ** (attempt - 1)
                attempt += 1
            else:
                seconds = asked
                self._waited += asked
            self._say(f"{what}: {status or 'connection lost'}, again in {seconds:g} s")
            time.sleep(seconds)


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


def _asked_wait(failure: BaseException) -> float | None:
    """Seconds that the Hub asks to be left alone, from `RateLimit` or `Retry-After`; None: unsaid."""
    if not isinstance(failure, HfHubHTTPError):
        return None
    headers = failure.response.headers
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        said = limit.reset_in_seconds
    elif (text := headers.get("Retry-After", "").strip()).isdecimal():
        said = int(text)
    else:
        return None  # `Retry-After` may be a date, which our clock may not share: pauses double
    return said + 1.0  # whole seconds, rounded down


def _refusal(
    what: str,
    status: int | None,
    error: BaseException,
    failure: BaseException,
    asked: float | None,
) -> HubError:
    said = getattr(failure, "server_message", None) or (str(error) if status is None else "")
    if status is None:
        return HubError(
            f"cannot {what}: the Hub is out of reach",
            got=clean(f"{type(failure).__name__}: {said}"),
            next=_AGAIN,
        )
    if asked is not None:
        return HubError(
            f"cannot {what}: the Hub answered {status} and asks for more time",
            got=f"wait {asked:g} s",
            allowed=f"{PATIENCE} s of waiting in all",
            next=f"wait that long, then {_AGAIN}",
        )
    return HubError(
        f"cannot {what}: the Hub answered {status}",
        got=clean(said) or None,
        next=_NEXT.get(status, _AGAIN),
    )
