"""Does a repository on the Hub hold what was packaged, and nothing else?

Names and hashes are compared where they lie. A file that the record does not list is reported and
never downloaded, whatever it is called: a pickle or a script beside the weights is just what a
verification must not fetch. Of files in large storage the Hub knows the sha256; the small ones are
fetched into a folder that is gone afterwards, hashed, and never parsed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi

from editforge.artifacts.sums import FACTS, differences, listed_files
from editforge.ground.errors import PackageError
from editforge.ground.places import is_hub_id
from editforge.hub.calls import Line
from editforge.hub.remote import ADDED, Remote


def verify_repository(
    repo: str,
    *,
    say: Callable[[str], None] = print,
    client: HfApi | None = None,
    pause: float = 1.0,
) -> list[str]:
    """What is wrong with a pushed repository, in the words of `verify_folder`; [] means nothing is.

    Everything is read at one commit. The LoRA is fetched although the Hub knows its hash, as after a
    push: it is what a user gets.

    Args:
        repo: `owner/name`.
        say: takes one line for the user.
        client: the Hub client; by default one that reads endpoint and token from the environment
            and the login store.
        pause: seconds before the first repetition of a call the Hub was too busy for.

    Raises:
        PackageError: no such folder and no repository name; or no package is there.
        HubError: the Hub did not say.
    """
    if not is_hub_id(repo):
        raise PackageError("no such folder", got=repo, allowed="a run, a package, or OWNER/NAME")
    remote = Remote(client or HfApi(), Line(say, pause), repo)
    commit = remote.look().commit
    tree = remote.files(commit)
    if FACTS not in tree:
        raise PackageError("nothing to verify here", got=repo, allowed=f"a repository with {FACTS}")
    with tempfile.TemporaryDirectory(prefix="editforge-verify-") as room:
        rows = listed_files(remote.fetch(FACTS, commit, Path(room)))
        if rows is None:
            return [f"{FACTS}: no table of files"]
        return differences(
            rows,
            set(tree) - ADDED - {FACTS},
            lambda name: remote.digests(tree[name], commit, Path(room)) == {rows[name]},
        )
