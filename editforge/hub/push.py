"""Push one repository folder: private first, the card last, everything read back.

A push is not atomic, so the order is the safety: create private, upload all but the card, compare
every remote sha256, upload the card on top of exactly that commit, and only then gate and open.
`editforge.json` goes with the card: what it lists stays the last complete push, so a card that a
person edited is told from one of ours, from any computer. Each step asks the Hub what is there
already, so a push killed anywhere is finished by the same command. The receipt remembers what the
Hub cannot tell: which pull request is ours, and whether the last step was reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from editforge.artifacts.sums import FACTS
from editforge.ground.disk import read_json, write_json
from editforge.ground.errors import EditforgeError, HubError, PackageError
from editforge.hub.calls import Line
from editforge.hub.remote import Found, Remote
from editforge.hub.staged import CARD, Staged, staged

SCHEMA = "editforge.push/1"
GATES = ("auto", "manual")
LAST = {CARD, FACTS}


@dataclass(frozen=True)
class Receipt:
    """How far a push came. No token, no local path and no clock is in it.

    Args:
        step: the last completed one: planned, created, uploaded, verified, card, opened.
        files: relative path to sha256, as packaged.
        visibility: `private` or `public`, as read back; before the last step, as found.
        gated: as read back: "auto", "manual", or None.
        commit: what the push left behind; the verified one until the card is up.
        pull_request: `refs/pr/N` on that route.
    """

    repo: str
    export: str
    files: Mapping[str, str]
    step: str = "planned"
    visibility: str = "private"
    gated: str | None = None
    commit: str | None = None
    pull_request: str | None = None

    def text(self) -> str:
        """The result in one line for a person."""
        where = f"proposed as {self.pull_request}" if self.pull_request else self.visibility
        state = f"{where}, verified at {self.commit}" if self.commit else "nothing sent"
        return f"{self.repo}: {len(self.files)} files of {self.export}, {state}"

    def to_json(self) -> dict[str, Any]:
        """What is written to disk and printed for programs."""
        return {"schema": SCHEMA, **asdict(self)}


def push_package(
    place: Path,
    repo: str,
    *,
    export: str | None = None,
    public: bool = False,
    create_pr: bool = False,
    gated: str | None = None,
    allow_failed: bool = False,
    replace_card: bool = False,
    dry_run: bool = False,
    confirm: Callable[[str], bool] | None = None,
    say: Callable[[str], None] = print,
    client: HfApi | None = None,
    pause: float = 1.0,
) -> Receipt:
    """Publish a packaged folder as a Hub model repository.

    Guarantee: a repository this call creates stays private until every remote file has been
    compared with the package by sha256, card included. After a failure the same call completes the
    push; after a success it changes nothing. What a person changed on the Hub is not overwritten.

    Args:
        place: a run, a package, or one repository folder of it.
        repo: `owner/name`.
        export: which folder of the package; None: the LoRA, or what there is if that is one alone.
        public: open the repository at the end; needed, too, to touch one that is public already.
        create_pr: propose the files as a pull request. Always so for a repository that was public
            before this push.
        gated: ask readers for their details: approve them "auto" or "manual". None leaves it.
        allow_failed: push although the gate failed; the card says so either way.
        replace_card: overwrite a card that a person edited on the Hub; nothing else of theirs.
        dry_run: only say what would be sent; no request is made.
        confirm: asked once, before the first request.
        say: takes one line for the user.
        client: the Hub client; by default one that reads endpoint and token from the environment
            and the login store. No other way of passing a token exists.
        pause: seconds before the first repetition of a call the Hub was too busy for.

    Raises:
        PackageError: the folder is not what was packaged, or its gate failed.
        HubError: a refusal, or what arrived is not what was sent.
    """
    _check_request(repo, gated)
    local = staged(place, export)
    if local.passed is False and not allow_failed:
        raise PackageError(
            "the gate failed, and a failed package is not pushed",
            got=f"passed = false  ({local.export}/editforge.json)",
            next="repair the edit; or push it, marked as failed, with --allow-failed",
        )
    receipt = Receipt(repo, local.export, local.files)
    target = f"{repo} ({'public' if public else 'private'})"
    total = sum(local.size(name) for name in local.files)
    if dry_run:
        for name in sorted(local.files):
            say(f"{local.size(name):>12,}  {name}")
        say(f"{total:>12,}  bytes in {len(local.files)} files would go to {target}")
        return receipt
    if confirm is not None and not confirm(f"Push {len(local.files)} files to {target}?"):
        raise HubError("not confirmed, nothing was sent", next="answer yes, or pass -y")
    remote = Remote(client or HfApi(), Line(say, pause), repo)
    push = _Push(local, receipt, remote, say, replace_card)
    return push.run(public=public, create_pr=create_pr, gated=gated)


def _check_request(repo: str, gated: str | None) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HubError("not a repository name", got=repo, allowed=str(error)) from None
    if repo.count("/") != 1:
        raise HubError("the repository has no owner", got=repo, allowed="OWNER/NAME")
    if gated not in (None, *GATES):
        raise HubError("no such gating", got=gated, allowed=", ".join(GATES))


class _Push:
    """One push under way: the steps in their order, each noted when it is done."""

    def __init__(
        self,
        local: Staged,
        receipt: Receipt,
        remote: Remote,
        say: Callable[[str], None],
        replace_card: bool,
    ) -> None:
        self._local, self._receipt, self._remote, self._say = local, receipt, remote, say
        self._replaced = {CARD} if replace_card else set()
        self._path = local.receipts / f"{receipt.repo.replace('/', '--')}.json"

    def run(self, *, public: bool, create_pr: bool, gated: str | None) -> Receipt:
        self._remote.create()
        found = self._remote.look()
        if found.visibility == "public" and not public:
            raise HubError(
                f"{self._receipt.repo} exists and is public",
                allowed="a private repository, unless you ask for a public one",
                next="push to another name, or add --public",
            )
        proposal = create_pr or found.visibility == "public"
        last = self._last()
        earlier = last if last is not None and last.files == self._receipt.files else None
        if (
            earlier is not None
            and earlier.step in ("card", "opened")
            and (proposal if earlier.pull_request else earlier.commit == found.commit)
        ):
            self._receipt = earlier  # all files are there, only the last step may be missing
        else:
            ours = earlier.pull_request if earlier is not None and proposal else None
            self._receipt = replace(self._receipt, pull_request=ours)
            self._upload(found, proposal, last.files if last is not None else {})
            proposal = self._receipt.pull_request is not None
        changes: dict[str, Any] = {}
        if gated not in (None, found.gated):
            changes["gated"] = gated
        if public and found.visibility != "public" and self._receipt.pull_request is None:
            changes["private"] = False
        if self._receipt.step == "opened" and not changes:
            self._say(f"{self._receipt.repo}: nothing to do, this push is complete")
            return self._receipt
        return self._open(changes)

    def _upload(self, found: Found, proposal: bool, earlier: Mapping[str, str]) -> None:
        """Everything but card and record, compared; then those on that very commit, compared too."""
        head = self._receipt.pull_request or found.commit
        self._remote.refuse_foreign(self._local, head)
        refuse_changed = partial(
            self._remote.refuse_changed,
            self._local,
            earlier=earlier,
            inherited=self._remote.files(found.commit) if proposal else {},
        )
        refuse_changed(sorted(set(self._local.files) - self._replaced), head)
        self._note("created", visibility=found.visibility, gated=found.gated)
        others = sorted(set(self._local.files) - LAST)
        self._commit(f"Add {self._local.export}", others, proposal, None if proposal else head)
        self._note("uploaded")
        self._remote.compare(self._local, others, str(self._receipt.commit))
        self._note("verified")
        # The first commit was made on `head` unless there was nothing to send: then the head is
        # whatever it has become meanwhile.
        refuse_changed(sorted(LAST - self._replaced), str(self._receipt.commit))
        self._commit("Add the card", sorted(LAST), proposal, self._receipt.commit)
        self._remote.compare(self._local, sorted(LAST), str(self._receipt.commit))
        self._note("card")

    def _commit(self, title: str, names: list[str], proposal: bool, parent: str | None) -> None:
        ours = self._receipt.pull_request
        commit, pull_request = self._remote.commit(
            self._local, names, title, revision=ours, create_pr=proposal and not ours, parent=parent
        )
        self._receipt = replace(self._receipt, commit=commit, pull_request=pull_request or ours)

    def _open(self, changes: Mapping[str, Any]) -> Receipt:
        """Gate first, then open: never public without the gate that was asked for."""
        for key in sorted(changes):  # "gated" before "private"
            self._remote.set(key, changes[key])
        found = self._remote.look()
        wanted = (changes.get("gated", found.gated), "private" not in changes)
        if wanted[0] != found.gated or not (wanted[1] or found.visibility == "public"):
            raise HubError(
                "the repository's settings are not what was asked for",
                got=f"{found.visibility}, gated = {found.gated}",
                next="run the same command again",
            )
        self._note("opened", visibility=found.visibility, gated=found.gated)
        return self._receipt

    def _last(self) -> Receipt | None:
        """The receipt of the last push from here to this repository, or None."""
        try:
            body = read_json(self._path)
            if body.pop("schema") != SCHEMA:
                return None
            last = Receipt(**body)
        except (EditforgeError, AttributeError, KeyError, TypeError):
            return None  # it only saves work: without it every step asks the Hub what is there
        is_ours = last.repo == self._receipt.repo and isinstance(last.files, dict)
        return last if is_ours else None

    def _note(self, step: str, **facts: Any) -> None:
        self._receipt = replace(self._receipt, step=step, **facts)
        write_json(self._path, self._receipt.to_json())
