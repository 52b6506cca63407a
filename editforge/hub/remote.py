"""A model repository on the Hub: what it is, what it holds, and what reaches it.

Only the client's public calls are used. `create_commit` takes an explicit list and makes one commit
of it, through xet where that is installed; what the Hub has already is neither sent nor committed
again.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.hf_api import RepoFile

from editforge.artifacts.sums import FACTS, listed_files
from editforge.ground.disk import read_json, sha256_file, write_json
from editforge.ground.errors import HubError, PackageError
from editforge.ground.files import read_header
from editforge.hub.calls import Line
from editforge.hub.staged import CARD, SCHEMA, Staged

LORA = "pytorch_lora_weights.safetensors"
ADDED = {".gitattributes"}  # by the Hub, to every repository


@dataclass(frozen=True)
class Found:
    """What the Hub says of a repository: `private` or `public`, its gate, the head of `main`."""

    visibility: str
    gated: str | None
    commit: str


class Remote:
    """One repository, through the client that was given."""

    def __init__(self, api: HfApi, line: Line, repo: str) -> None:
        self._api, self._call, self._repo = api, line.call, repo

    def create(self) -> None:
        """Create it private. One that exists is left as it is: look before anything is sent."""
        self._call(
            f"create {self._repo}",
            lambda: self._api.create_repo(self._repo, private=True, exist_ok=True),
        )

    def look(self) -> Found:
        """Read visibility, gate and head back."""
        info = self._call(f"read {self._repo}", lambda: self._api.model_info(self._repo))
        visibility = "private" if info.private else "public"
        return Found(visibility, info.gated or None, str(info.sha))

    def set(self, key: str, value: object) -> None:
        """Change one setting, `gated` or `private`."""
        change: dict[str, Any] = {key: value}
        self._call(
            f"set {key} of {self._repo}",
            lambda: self._api.update_repo_settings(self._repo, **change),
        )

    def files(self, revision: str) -> dict[str, RepoFile]:
        """Path to what the Hub knows of each file."""
        tree = self._call(
            f"list the files of {self._repo}",
            lambda: list(self._api.list_repo_tree(self._repo, recursive=True, revision=revision)),
        )
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def refuse_foreign(self, local: Staged, revision: str) -> None:
        """Refuse a repository with other files: a stale weight beside ours would load as ours."""
        foreign = sorted(set(self.files(revision)) - set(local.files) - ADDED)
        if foreign:
            raise HubError(
                f"{self._repo} holds files that are not of this package",
                got=", ".join(foreign[:4]) + (" ..." if len(foreign) > 4 else ""),
                allowed="an empty repository, or an earlier push of the same file names",
                next="push to another name, or delete those files on the Hub",
            )

    def refuse_changed(
        self,
        local: Staged,
        names: list[str],
        revision: str,
        *,
        earlier: Mapping[str, str],
        inherited: Mapping[str, RepoFile],
    ) -> None:
        """Refuse to overwrite a file that a person changed: what is there must be ours.

        Ours is what the package holds, what the last push from here sent, and what the remote
        `editforge.json` lists: every push, from whatever computer, commits it together with the
        card. It cannot list itself: it is ours if it has the form in which we write it, unless its
        table is one of ours and the rest is not.

        Args:
            local: the package.
            names: the files about to be sent.
            revision: what they would be committed on.
            earlier: path to sha256 of the last push from here, {} if there is none.
            inherited: files that a proposal starts from; proposing over those is what it is for.
        """
        tree = self.files(revision)
        found: dict[str, str] = {}
        tables = [local.files, earlier]
        with tempfile.TemporaryDirectory(prefix="editforge-look-") as room:
            for name in names:
                entry, start = tree.get(name), inherited.get(name)
                if entry is None or (start is not None and start.blob_id == entry.blob_id):
                    continue
                if entry.lfs is None and entry.blob_id == _blob_id(local.folder / name):
                    continue
                found[name] = self.sha256(entry, revision, Path(room))
            if FACTS in found and found[FACTS] not in {table.get(FACTS) for table in tables}:
                record = _record(Path(room) / FACTS)
                if record is not None and record not in [_listed(table) for table in tables]:
                    tables.append({**record, FACTS: found[FACTS]})
        changed = sorted(n for n in found if found[n] not in {table.get(n) for table in tables})
        if changed:
            raise HubError(
                f"{self._repo} holds a card that somebody changed on the Hub"
                if changed == [CARD]
                else f"{self._repo} holds files that somebody changed on the Hub",
                got=", ".join(changed[:4]) + (" ..." if len(changed) > 4 else ""),
                allowed="files of this package, or as an earlier push left them",
                next="look at it there; then replace it with --replace-card, or propose yours "
                "with --create-pr"
                if changed == [CARD]
                else "propose the package with --create-pr, push to another name, or delete "
                "those files on the Hub",
            )

    def sha256(self, entry: RepoFile, revision: str, room: Path) -> str:
        """What the Hub knows of a file in large storage; the hash of any other, fetched to `room`."""
        if entry.lfs is not None:
            return str(entry.lfs.sha256)
        return sha256_file(self.fetch(entry.path, revision, room))

    def digests(self, entry: RepoFile, revision: str, room: Path) -> frozenset[str]:
        """Every sha256 that there is of a file: one, if nothing is wrong.

        What the Hub says of large files, what was fetched to `room` of others; of the LoRA, which
        users get, both.
        """
        known = [self.sha256(entry, revision, room)]
        if entry.path == LORA and entry.lfs is not None:
            known.append(sha256_file(self.fetch(LORA, revision, room)))
        return frozenset(known)

    def commit(
        self,
        local: Staged,
        names: list[str],
        title: str,
        *,
        revision: str | None,
        create_pr: bool,
        parent: str | None,
    ) -> tuple[str, str | None]:
        """Commit the named files; returns the commit and the ref of a pull request it opened."""

        def send() -> CommitInfo:  # the client marks operations as used: new ones for each attempt
            files = [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=local.folder / name)
                for name in names
            ]
            return self._api.create_commit(
                self._repo,
                files,
                commit_message=title,
                revision=revision,
                create_pr=create_pr,
                parent_commit=parent,
            )

        # Were only the answer lost, a repeated request would open a second pull request.
        what = f"upload {len(names)} file{'s' * (len(names) > 1)} to {self._repo}"
        commit = self._call(what, send, once=create_pr)
        return commit.oid, commit.pr_revision

    def compare(self, local: Staged, names: list[str], commit: str) -> None:
        """Compare the sha256 of every named file at a commit with the package's.

        The Hub knows the sha256 of files in large-file storage; the others are fetched and hashed.
        The LoRA is fetched in any case, and its tensor table must be ours.

        Raises:
            HubError: a file is missing or differs.
        """
        remote = self.files(commit)
        wrong = []
        with tempfile.TemporaryDirectory(prefix="editforge-verify-") as room:
            for name in names:
                entry = remote.get(name)
                if entry is None:
                    wrong.append(f"{name} is missing")
                    continue
                if self.digests(entry, commit, Path(room)) != {local.files[name]}:
                    wrong.append(f"{name} has another sha256")
                elif name == LORA and _table(Path(room, name)) != _table(local.folder / name):
                    wrong.append(f"{name} holds other tensors")
        if wrong:
            raise HubError(
                f"{self._repo} does not hold what was sent",
                got="; ".join(wrong[:4]) + ("; ..." if len(wrong) > 4 else ""),
                allowed=f"the package, at commit {commit}",
                next="run the same command again; if it repeats, delete the file on the Hub first",
            )

    def fetch(self, name: str, commit: str, room: Path) -> Path:
        """Download one file below `room`."""

        def fetch() -> str:
            return self._api.hf_hub_download(self._repo, name, revision=commit, local_dir=room)

        return Path(self._call(f"fetch {name} back", fetch))


def _table(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (info.dtype, info.shape) for name, info in read_header(path)[1].items()}


def _blob_id(path: Path) -> str:
    """What git calls this content; the Hub knows small files by it."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _record(path: Path) -> dict[str, str] | None:
    """The table of files of an `editforge.json` in the form in which we write it, else None."""
    try:
        body = read_json(path)
    except PackageError:
        return None
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        return None
    again = path.with_name("again.json")
    write_json(again, body)
    if again.read_bytes() != path.read_bytes():
        return None
    return listed_files(path)


def _listed(table: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in table.items() if name != FACTS}
