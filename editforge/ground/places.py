"""What a name that the user typed means: something on this computer, or a repository on the Hub.

`OWNER/NAME` is also how a folder in a folder is written, so a mistyped path must not become a look-up
of a stranger's repository. What looks like a path is one.
"""

from __future__ import annotations

import re
from pathlib import Path

from editforge.ground.errors import HubError

# Named one by one: a Hub id may end in a version, `.0` or `.1-noVAE`.
_FILES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".zip",
          ".yaml", ".yml", ".json", ".txt", ".md", ".png")  # fmt: skip

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_repository(name: str) -> bool:
    """Whether the Hub could have a repository of this name, `OWNER/NAME`."""
    if not HUB_ID.fullmatch(name):
        return False
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def is_hub_id(text: str) -> bool:
    """Whether `text` names a Hub repository: `OWNER/NAME`, and no path.

    A path starts with `.`, `~` or `/`, ends like a file, exists, or lies in a folder that does.
    """
    if text.casefold().endswith(_FILES) or not is_repository(text):
        return False
    return not Path(text.partition("/")[0]).is_dir()


def transport_error() -> type[BaseException]:
    """The common error of the HTTP library below the Hub's client: lost connections, timeouts.

    That library has changed from requests to httpx to httpx2, so nothing of it is named: whatever
    it is, the client's own `HfHubHTTPError` derives from its error first.
    """
    from huggingface_hub.errors import HfHubHTTPError

    error: type[BaseException] = HfHubHTTPError.__bases__[0]
    return error


def hub_failure(name: str, error: BaseException) -> HubError:
    """Why the Hub did not give a repository; `error` is the client's, or wraps it."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    link: BaseException | None = error
    while link is not None and not isinstance(link, RepositoryNotFoundError):
        link = link.__cause__
    if link is not None and not isinstance(link, GatedRepoError):
        return HubError(
            f"neither a local folder nor a Hub repository is called {name}",
            got=_short(link),
            next="check the spelling; `hf auth login` if the repository is private",
        )
    return HubError(
        f"the Hub did not give {name}",
        got=_short(error),
        next="check the id, the revision, the network, and `hf auth login` for gated models",
    )


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
