"""A small Hub on the loopback: what the real client calls, answered, with faults on demand.

It keeps commits as dictionaries, so nothing but the protocol is here. Xet is not: its storage
protocol is a service of its own, so tests switch it off (HF_HUB_DISABLE_XET): the client uses LFS.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_" + "q7" * 17
LARGE = (".safetensors", ".png")


@dataclass
class Repo:
    private: bool
    gated: str | bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    log: list[tuple[str, str, list[str]]] = field(default_factory=list)  # ref, title, paths

    def head(self) -> dict[str, bytes]:
        return self.commits[self.refs["main"]]


@dataclass
class Fault:
    """At the n-th call of a kind: a status, or a lost answer once the work is done."""

    kind: str
    nth: int = 1
    status: int | None = None
    times: int = 1
    act: Callable[[], None] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None


class Hub:
    """State and faults of one server; `calls` names every request in order."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.faults: list[Fault] = []
        self.listed: dict[str, str] = {}  # path to a sha256 the listing shows instead
        self.served: dict[str, bytes] = {}  # path to bytes a download gives instead
        self.fetched: list[str] = []  # paths that were downloaded
        self.counts: Counter[str] = Counter()
        self.url = ""

    def fail(self, kind: str, status: int | None = None, **options: object) -> None:
        self.faults.append(Fault(kind, status=status, **options))  # type: ignore[arg-type]

    def repo(self, name: str, *, private: bool, files: dict[str, bytes] | None = None) -> Repo:
        repo = self.repos[name] = Repo(private)
        self.commit(repo, "main", "initial commit", {".gitattributes": b"", **(files or {})})
        repo.log.clear()
        return repo

    def commit(self, repo: Repo, ref: str, title: str, files: dict[str, bytes]) -> str:
        tree = {**repo.commits.get(repo.refs.get(ref, ""), {}), **files}
        oid = hashlib.sha1(f"{ref}{title}{len(repo.commits)}".encode()).hexdigest()
        repo.commits[oid], repo.refs[ref] = tree, oid
        repo.log.append((ref, title, sorted(files)))
        return oid


def large(path: str) -> bool:
    return path.endswith(LARGE)


def oid_of(path: str, data: bytes) -> str:
    if large(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for kind, method, pattern in ROUTES:  # noqa: B007 the kind is used below
            match = re.fullmatch(pattern, url.path)
            if match and self.command in method.split():
                break
        else:
            self.reply(404, {"error": f"no route {self.command} {self.path}"})
            return
        self.hub.calls.append(kind)
        self.hub.counts[kind] += 1
        fault = next((fault for fault in self.hub.faults if self.due(fault, kind)), None)
        if fault and fault.status:
            # A careless server that echoes what it was sent.
            echo = f"refused for {self.headers.get('Authorization')}"
            self.reply(
                fault.status,
                fault.body or {"error": echo},
                {"X-Error-Message": echo, **fault.headers},
            )
            return
        secret = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if kind not in ("object", "part", "complete") and not secret:
            self.reply(401, {"error": "Invalid username or password."})
            return
        self.lost = fault is not None
        if fault and fault.act:
            self.after = fault.act
        else:
            self.after = lambda: None
        getattr(self, kind)(*[unquote(group) for group in match.groups()])

    def due(self, fault: Fault, kind: str) -> bool:
        return fault.kind == kind and 0 <= self.hub.counts[kind] - fault.nth < fault.times

    def reply(self, status: int, body: object = b"", headers: dict[str, str] | None = None) -> None:
        if getattr(self, "lost", False):
            self.lost = False
            self.after()
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(2)
            return
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def find(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None:
            self.reply(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return repo

    def tree_at(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        oid = repo.refs.get(revision, revision)
        return oid, repo.commits[oid]

    # one method for each kind of call

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        body = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repos:
            self.reply(409, {**body, "error": "You already created this model repo"})
            return
        self.hub.repo(name, private=asked.get("visibility") == "private")
        self.reply(200, body)

    def validate(self) -> None:
        content = json.loads(self.body)["content"]
        fault = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        self.reply(400 if fault else 200, {"errors": fault, "warnings": []})

    def info(self, name: str, revision: str | None = None) -> None:
        if repo := self.find(name):
            oid, files = self.tree_at(repo, revision or "main")
            facts = {"id": name, "sha": oid, "private": repo.private, "gated": repo.gated}
            sizes = "blobs" in self.query
            rows = [
                {"rfilename": path, **({"size": len(data)} if sizes else {})}
                for path, data in files.items()
            ]
            card = repo.commits[oid].get("README.md", b"").decode().split("---\n")
            data = yaml.safe_load(card[1]) if len(card) > 1 else None
            self.reply(200, {**facts, "tags": [], "siblings": rows, "cardData": data})

    def settings(self, name: str) -> None:
        if repo := self.find(name):
            asked = json.loads(self.body)
            repo.gated = asked.get("gated", repo.gated)
            if "visibility" in asked:
                repo.private = asked["visibility"] == "private"
            self.reply(200, {})

    def preupload(self, name: str, revision: str) -> None:
        if repo := self.find(name):
            tree = self.tree_at(repo, revision)[1]
            rows = [
                {
                    "path": path,
                    "uploadMode": "lfs" if large(path) else "regular",
                    "shouldIgnore": False,
                    "oid": oid_of(path, tree[path]) if path in tree else None,
                }
                for path in (row["path"] for row in json.loads(self.body)["files"])
            ]
            self.reply(200, {"files": rows})

    def batch(self, name: str) -> None:
        objects = []
        for row in json.loads(self.body)["objects"]:
            oid, size = row["oid"], row["size"]
            if oid in self.hub.objects:
                objects.append({"oid": oid, "size": size})
                continue
            upload: dict[str, object] = {"href": f"{self.hub.url}/lfs/{oid}"}
            if size > 4096:  # in parts, as the Hub does above 5 GB
                parts = range(1, -(-size // 4096) + 1)
                hrefs = {str(n): f"{self.hub.url}/lfs/{oid}/{n}" for n in parts}
                upload = {
                    "href": f"{self.hub.url}/lfs/{oid}/complete",
                    "header": {"chunk_size": "4096", **hrefs},
                }
            verify = {"href": f"{self.hub.url}/lfs-verify/{name}"}
            objects.append(
                {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}
            )
        self.reply(200, {"transfer": "basic", "objects": objects})

    def object(self, oid: str) -> None:
        self.keep(oid, self.body)

    def part(self, oid: str, number: str) -> None:
        self.hub.objects[f"{oid}/{int(number):05}"] = self.body
        self.reply(200, b"", {"ETag": f'"{number}"'})

    def complete(self, oid: str) -> None:
        names = sorted(name for name in self.hub.objects if name.startswith(f"{oid}/"))
        self.keep(oid, b"".join(self.hub.objects.pop(name) for name in names))

    def keep(self, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            self.reply(400, {"error": "sha256 mismatch"})
            return
        self.hub.objects[oid] = data
        self.reply(200, {})

    def verified(self, name: str) -> None:
        known = json.loads(self.body)["oid"] in self.hub.objects
        self.reply(200 if known else 404, {})

    def commit(self, name: str, ref: str) -> None:
        repo = self.find(name)
        if repo is None:
            return
        rows = [json.loads(line) for line in self.body.splitlines()]
        header, files = rows[0]["value"], {}
        for row in rows[1:]:
            value = row["value"]
            files[value["path"]] = (
                self.hub.objects[value["oid"]]
                if row["key"] == "lfsFile"
                else base64.b64decode(value["content"])
            )
        extra = {}
        if "create_pr" in self.query:
            number = 1 + sum(known.startswith("refs/pr/") for known in repo.refs)
            repo.refs[f"refs/pr/{number}"] = repo.refs[ref]
            ref = f"refs/pr/{number}"
            extra = {"pullRequestUrl": f"{self.hub.url}/{name}/discussions/{number}"}
        elif header.get("parentCommit") not in (None, repo.refs[ref]):
            self.reply(412, {"error": "A commit has happened since. Please refresh."})
            return
        oid = self.hub.commit(repo, ref, header["summary"], files)
        url = f"{self.hub.url}/{name}/commit/{oid}"
        self.reply(200, {"commitUrl": url, "commitOid": oid, **extra})

    def tree(self, name: str, revision: str) -> None:
        if repo := self.find(name):
            rows = []
            for path, data in self.tree_at(repo, revision)[1].items():
                row = {"type": "file", "path": path, "size": len(data), "oid": oid_of(path, data)}
                if large(path):
                    digest = self.hub.listed.get(path, row["oid"])
                    row |= {
                        "oid": hashlib.sha1(str(digest).encode()).hexdigest(),
                        "lfs": {"oid": digest, "size": len(data), "pointerSize": 130},
                    }
                rows.append(row)
            self.reply(200, rows)

    def resolve(self, name: str, revision: str, path: str) -> None:
        if repo := self.find(name):
            oid, files = self.tree_at(repo, revision)
            if path not in files:
                self.reply(404, {"error": "Not found"}, {"X-Error-Code": "EntryNotFound"})
                return
            etag = f'"{oid_of(path, files[path])}"'
            data = self.hub.served.get(path, files[path])
            self.hub.fetched.append(path)
            self.reply(200, data, {"ETag": etag, "X-Repo-Commit": oid})


_NAME = r"([^/]+/[^/]+)"
ROUTES = [
    ("create", "POST", "/api/repos/create"),
    ("validate", "POST", "/api/validate-yaml"),
    ("info", "GET", rf"/api/models/{_NAME}"),
    ("info", "GET", rf"/api/models/{_NAME}/revision/([^/]+)"),
    ("settings", "PUT", rf"/api/models/{_NAME}/settings"),
    ("preupload", "POST", rf"/api/models/{_NAME}/preupload/([^/]+)"),
    ("commit", "POST", rf"/api/models/{_NAME}/commit/([^/]+)"),
    ("tree", "GET", rf"/api/models/{_NAME}/tree/([^/]+)"),
    ("batch", "POST", rf"/{_NAME}\.git/info/lfs/objects/batch"),
    ("verified", "POST", rf"/lfs-verify/{_NAME}"),
    ("complete", "POST", r"/lfs/(\w+)/complete"),
    ("part", "PUT", r"/lfs/(\w+)/(\d+)"),
    ("object", "PUT", r"/lfs/(\w+)"),
    ("resolve", "GET HEAD", rf"/{_NAME}/resolve/([^/]+)/(.+)"),
]


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A running Hub on 127.0.0.1, at a free port."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
