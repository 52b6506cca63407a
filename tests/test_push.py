"""The real Hub client against a loopback server: order, visibility, hashes, faults, resumption."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import close_session

from editforge.ground.disk import sha256_file, write_json, write_text
from editforge.ground.errors import EditforgeError, HubError, PackageError
from editforge.ground.files import write_safetensors
from editforge.hub.push import Receipt, push_package
from editforge.hub.verify import verify_repository
from tests.hub_server import TOKEN, Hub, serving

REPO = "ann/violin-erased"
LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # see hub_server
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # whatever the shell says
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as server:
        yield server
    close_session()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return package(tmp_path / "run")


def package(run: Path, passed: bool | None = True) -> Path:
    folder = run / "package" / "lora"
    down = torch.arange(2048, dtype=torch.float32).reshape(4, 512)
    write_safetensors(folder / LORA, {"unet.a.lora_A.weight": down}, {})
    write_safetensors(folder / "kohya" / "violin.safetensors", {"lora_down": down[:, :8] + 1}, {})
    write_text(folder / "README.md", "---\nlicense: mit\n---\n\n# Violin\n")
    (folder / "images").mkdir()
    (folder / "images" / "before_after.png").write_bytes(b"\x89PNG" + bytes(200))
    write_text(folder / "reproduce" / "recipe.yaml", "concepts: [violin]\n")
    write_json(folder / "editforge_results.json", {"schema": "editforge.results/2"})
    seal(folder, passed)
    return run


def seal(folder: Path, passed: bool | None) -> None:
    (folder / "editforge.json").unlink(missing_ok=True)
    gate = {"status": {True: "passed", False: "failed", None: "not judged"}[passed]}
    facts = {"schema": "editforge.package/1", "gate": {**gate, "passed": passed}}
    write_json(folder / "editforge.json", {**facts, "files": digests(folder)})
    rows = [f"{digest}  lora/{name}\n" for name, digest in digests(folder).items()]
    write_text(folder.parent / "SHA256SUMS", "".join(rows))


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Told(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)


def push(hub: Hub, place: Path, **options: object) -> Receipt:
    options = {"say": Told(), "pause": 0.01, **options}
    return push_package(place, REPO, client=HfApi(endpoint=hub.url), **options)  # type: ignore[arg-type]


def receipt(run: Path) -> dict[str, object]:
    return json.loads((run / "push" / "ann--violin-erased.json").read_text())


def remote_digests(hub: Hub, ref: str = "main") -> dict[str, str]:
    repo = hub.repos[REPO]
    files = repo.commits[repo.refs[ref]]
    return {n: hashlib.sha256(d).hexdigest() for n, d in files.items() if n != ".gitattributes"}


def test_a_push_is_private_and_holds_the_package(hub: Hub, run: Path) -> None:
    done = push(hub, run)
    assert hub.repos[REPO].private
    assert remote_digests(hub) == digests(run / "package" / "lora") == done.files
    assert receipt(run) == done.to_json()
    assert (done.step, done.visibility, done.commit) == (
        "opened",
        "private",
        hub.repos[REPO].refs["main"],
    )
    assert "part" in hub.calls  # the LoRA is large enough for the server's multipart upload
    assert "object" in hub.calls


def test_the_card_is_the_last_commit_and_opening_the_last_call(hub: Hub, run: Path) -> None:
    push(hub, run, public=True, gated="manual")
    first, last = hub.repos[REPO].log
    assert "README.md" not in first[2]
    assert "editforge.json" not in first[2]
    assert last == ("main", "Add the card", ["README.md", "editforge.json"])
    assert not hub.repos[REPO].private
    assert hub.repos[REPO].gated == "manual"
    assert hub.calls[-3:] == ["settings", "settings", "info"]
    assert "resolve" in hub.calls[hub.calls.index("commit") : -3]


@pytest.mark.parametrize("place", ["package", "package/lora"])
def test_a_package_or_one_of_its_folders_will_do(hub: Hub, run: Path, place: str) -> None:
    push(hub, run / place)
    assert receipt(run)["step"] == "opened"


@pytest.mark.parametrize("name", [LORA, "kohya/violin.safetensors", "images/before_after.png"])
def test_another_sha256_in_large_storage_is_caught(hub: Hub, run: Path, name: str) -> None:
    hub.listed[name] = "0" * 64
    with pytest.raises(HubError, match=f"{name} has another sha256"):
        push(hub, run, public=True)
    assert hub.repos[REPO].private
    assert "README.md" not in hub.repos[REPO].head()
    hub.listed.clear()
    assert push(hub, run, public=True).visibility == "public"


@pytest.mark.parametrize("name", [LORA, "reproduce/recipe.yaml", "editforge.json", "README.md"])
def test_corrupted_bytes_of_the_right_size_are_caught(hub: Hub, run: Path, name: str) -> None:
    data = bytearray((run / "package" / "lora" / name).read_bytes())
    data[-1] ^= 1
    hub.served[name] = bytes(data)
    with pytest.raises(HubError, match=f"{name} has another sha256"):
        push(hub, run, public=True)
    assert hub.repos[REPO].private
    assert receipt(run)["step"] != "opened"


def test_an_existing_public_repository_needs_public(hub: Hub, run: Path) -> None:
    repo = hub.repo(REPO, private=False)
    with pytest.raises(HubError, match="exists and is public"):
        push(hub, run)
    assert repo.log == []
    assert set(hub.calls) == {"create", "info"}


def test_an_existing_public_repository_gets_a_pull_request(hub: Hub, run: Path) -> None:
    repo = hub.repo(REPO, private=False)
    done = push(hub, run, public=True)
    assert done.pull_request == "refs/pr/1"
    assert set(repo.head()) == {".gitattributes"}
    assert remote_digests(hub, "refs/pr/1") == done.files


def test_a_repository_with_other_files_is_refused(hub: Hub, run: Path) -> None:
    repo = hub.repo(REPO, private=True, files={"old.safetensors": b"?"})
    with pytest.raises(HubError, match=r"old\.safetensors"):
        push(hub, run)
    assert repo.log == []


def test_a_failed_gate_needs_allow_failed(hub: Hub, tmp_path: Path) -> None:
    run = package(tmp_path / "failed", passed=False)
    with pytest.raises(PackageError, match="gate failed"):
        push(hub, run)
    assert hub.calls == []
    assert push(hub, run, allow_failed=True).step == "opened"


def test_not_judged_is_no_failure(hub: Hub, tmp_path: Path) -> None:
    assert push(hub, package(tmp_path / "open", passed=None)).step == "opened"


STEPS = [
    *[(kind, n) for kind, n in [("create", 1), ("info", 1), ("tree", 1), ("preupload", 1)]],
    *[(kind, 1) for kind in ("batch", "object", "part", "complete", "verified", "commit")],
    *[("tree", 2), ("resolve", 1), ("validate", 1), ("preupload", 2), ("commit", 2)],
    *[("tree", 3), ("settings", 1), ("settings", 2)],
]


@pytest.mark.parametrize(("kind", "nth"), STEPS)
def test_a_refusal_at_any_step_is_told_once_and_the_next_push_completes(
    hub: Hub, run: Path, kind: str, nth: int
) -> None:
    hub.fail(kind, 403, nth=nth)
    told = Told()
    with pytest.raises(HubError, match="answered 403") as caught:
        push(hub, run, public=True, gated="auto", say=told)
    if kind not in ("object", "verified"):  # the client sends several at once
        assert hub.counts[kind] == nth
    assert told == []
    assert TOKEN not in str(caught.value)
    if kind != "settings":
        assert all(repo.private for repo in hub.repos.values())
    hub.faults.clear()
    done = push(hub, run, public=True, gated="auto")
    repo = hub.repos[REPO]
    assert (done.step, done.visibility, done.gated) == ("opened", "public", "auto")
    assert done.pull_request is None
    assert [title for _, title, _ in repo.log] == ["Add lora", "Add the card"]
    assert remote_digests(hub) == done.files


@pytest.mark.parametrize("kind", ["create", "info", "commit", "validate", "resolve", "settings"])
@pytest.mark.parametrize("status", [429, 503, None])
def test_a_busy_hub_and_a_lost_answer_are_tried_again(
    hub: Hub, run: Path, kind: str, status: int | None
) -> None:
    hub.fail(kind, status, times=2)
    told = Told()
    assert push(hub, run, public=True, say=told).step == "opened"
    assert told or kind == "resolve"  # there the client has pauses of its own
    assert [title for _, title, _ in hub.repos[REPO].log] == ["Add lora", "Add the card"]


def test_patience_ends(hub: Hub, run: Path) -> None:
    hub.fail("create", 503, times=99)
    with pytest.raises(HubError, match="answered 503"):
        push(hub, run)
    assert hub.counts["create"] == 5


WAITS = [
    ({"RateLimit": '"api";r=0;t=0', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, "1 s"),
    ({"Retry-After": "0"}, "1 s"),
    ({"RateLimit": '"api";r=3;t=300'}, "0.01 s"),  # not used up: that is not why it refuses
    ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "0.01 s"),
    ({}, "0.01 s"),
]


@pytest.mark.parametrize(("headers", "seconds"), WAITS)
def test_a_busy_hub_is_left_alone_as_long_as_it_asks(
    hub: Hub, run: Path, headers: dict[str, str], seconds: str
) -> None:
    hub.fail("create", 429, headers=headers)
    told = Told()
    assert push(hub, run, say=told).step == "opened"
    assert told == [f"create {REPO}: 429, again in {seconds}"]


def test_a_wait_that_the_hub_asks_for_costs_no_attempt(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("editforge.hub.calls.ATTEMPTS", 1)
    hub.fail("create", 429, times=2, headers={"Retry-After": "0"})
    assert push(hub, run).step == "opened"


def test_more_patience_than_ten_minutes_in_all_is_refused_with_what_the_hub_asks(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fail("create", 429, headers={"RateLimit": '"api";r=0;t=3600'})
    with pytest.raises(HubError, match="wait 3601 s") as caught:
        push(hub, run)
    assert caught.value.allowed == "600 s of waiting in all"
    assert hub.calls == ["create"]
    hub.faults.clear()
    monkeypatch.setattr("editforge.hub.calls.PATIENCE", 1.5)
    hub.fail("create", 429, nth=2, headers={"Retry-After": "0"})
    hub.fail("settings", 429, headers={"Retry-After": "0"})  # another call of the same push
    with pytest.raises(HubError, match="wait 1 s"):
        push(hub, run, public=True)
    assert hub.repos[REPO].private


def test_a_hub_out_of_reach_is_an_answer_not_a_traceback(run: Path) -> None:
    api = HfApi(endpoint="http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(HubError, match="out of reach"):
        push_package(run, REPO, client=api, pause=0.001, say=Told())


def test_a_change_by_somebody_else_stops_the_card(hub: Hub, run: Path) -> None:
    def meddle() -> None:
        hub.commit(hub.repos[REPO], "main", "meddle", {"reproduce/recipe.yaml": b"other"})

    hub.fail("validate", act=meddle)  # the card's own first request; its answer is lost as well
    with pytest.raises(HubError, match="412"):
        push(hub, run, public=True)
    assert hub.repos[REPO].private
    assert "README.md" not in hub.repos[REPO].head()


def test_a_complete_push_is_a_no_op_that_says_so(hub: Hub, run: Path) -> None:
    push(hub, run, public=True)
    hub.calls.clear()
    told = Told()
    assert push(hub, run, public=True, say=told).step == "opened"
    assert hub.calls == ["create", "info"]
    assert "nothing to do" in told[-1]


def test_a_receipt_does_not_hide_a_lost_repository(hub: Hub, run: Path) -> None:
    push(hub, run)
    hub.repos.clear()
    done = push(hub, run)
    assert remote_digests(hub) == done.files


EDITED = b"---\nlicense: mit\n---\n\n# Violin, in my own words\n"


def edit(hub: Hub, name: str, data: bytes, ref: str = "main") -> None:
    """A person, in the web editor."""
    hub.commit(hub.repos[REPO], ref, f"Update {name}", {name: data})


def change(run: Path) -> None:
    """Another edit of the same concept: other weights, another card."""
    folder = run / "package" / "lora"
    weights = torch.ones(4, 512)
    write_safetensors(folder / LORA, {"unet.a.lora_A.weight": weights}, {})
    write_text(folder / "README.md", "---\nlicense: mit\n---\n\n# Violin, stronger\n")
    write_text(folder / "reproduce" / "recipe.yaml", "concepts: [violin]\nstrength: 1.2\n")
    seal(folder, True)


def forget(run: Path) -> None:
    """Another computer: the package is there, the receipt is not."""
    for path in (run / "push").iterdir():
        path.unlink()


@pytest.mark.parametrize("receipts", ["with the receipt", "without"])
@pytest.mark.parametrize("package", ["the same package", "another"])
def test_a_card_edited_on_the_hub_is_not_overwritten(
    hub: Hub, run: Path, receipts: str, package: str
) -> None:
    push(hub, run)
    edit(hub, "README.md", EDITED)
    before = dict(hub.repos[REPO].head())
    if package == "another":
        change(run)
    if receipts == "without":
        forget(run)
    with pytest.raises(HubError, match="a card that somebody changed") as caught:
        push(hub, run)
    assert "--replace-card" in str(caught.value.next)
    assert "--create-pr" in str(caught.value.next)
    assert hub.repos[REPO].head() == before
    done = push(hub, run, replace_card=True)
    assert done.step == "opened"
    assert remote_digests(hub) == done.files


@pytest.mark.parametrize("package", ["the same package", "another"])
def test_over_an_edited_card_a_package_can_be_proposed(hub: Hub, run: Path, package: str) -> None:
    push(hub, run)
    edit(hub, "README.md", EDITED)
    if package == "another":
        change(run)
    hub.fail("validate", 403, nth=2)  # the proposed card's first request
    with pytest.raises(HubError, match="403"):
        push(hub, run, create_pr=True)
    hub.faults.clear()
    done = push(hub, run, create_pr=True)
    assert done.pull_request == "refs/pr/1"
    assert remote_digests(hub, "refs/pr/1") == done.files
    assert hub.repos[REPO].head()["README.md"] == EDITED


def test_what_a_person_changed_in_our_pull_request_stays(hub: Hub, run: Path) -> None:
    hub.repo(REPO, private=True)
    hub.fail("commit", 403, nth=2)
    with pytest.raises(HubError, match="403"):
        push(hub, run, create_pr=True)
    hub.faults.clear()
    edit(hub, "README.md", EDITED, "refs/pr/1")
    with pytest.raises(HubError, match="a card that somebody changed"):
        push(hub, run, create_pr=True)
    assert hub.repos[REPO].commits[hub.repos[REPO].refs["refs/pr/1"]]["README.md"] == EDITED


@pytest.mark.parametrize("name", [LORA, "reproduce/recipe.yaml", "editforge.json"])
@pytest.mark.parametrize("receipts", ["with the receipt", "without"])
def test_no_other_file_that_somebody_changed_is_overwritten(
    hub: Hub, run: Path, name: str, receipts: str
) -> None:
    push(hub, run)
    theirs = (run / "package" / "lora" / name).read_bytes().replace(b"violin", b"cello") + b" "
    edit(hub, name, theirs)
    change(run)
    if receipts == "without":
        forget(run)
    with pytest.raises(HubError, match="files that somebody changed") as caught:
        push(hub, run, replace_card=True)
    assert name in str(caught.value.got)
    assert hub.repos[REPO].head()[name] == theirs


def test_a_record_edited_in_our_own_form_is_told_by_what_it_lists(hub: Hub, run: Path) -> None:
    push(hub, run)
    facts = json.loads((run / "package" / "lora" / "editforge.json").read_text())
    write_json(run / "theirs.json", {**facts, "gate": {"passed": None}})
    edit(hub, "editforge.json", (run / "theirs.json").read_bytes())
    with pytest.raises(HubError, match=r"editforge\.json"):
        push(hub, run)


def test_a_card_that_was_there_before_us_is_not_overwritten(hub: Hub, run: Path) -> None:
    repo = hub.repo(REPO, private=True, files={"README.md": EDITED})
    with pytest.raises(HubError, match="a card that somebody changed"):
        push(hub, run)
    assert repo.log == []
    assert push(hub, run, replace_card=True).step == "opened"


@pytest.mark.parametrize("receipts", ["with the receipt", "without"])
def test_our_own_earlier_push_is_replaced(hub: Hub, run: Path, receipts: str) -> None:
    push(hub, run)
    change(run)
    if receipts == "without":
        forget(run)
    hub.fail("validate", 403, nth=2)  # stopped between the two commits
    with pytest.raises(HubError, match="403"):
        push(hub, run)
    hub.faults.clear()
    if receipts == "without":
        forget(run)
    done = push(hub, run)
    assert remote_digests(hub) == done.files


def test_a_card_edited_while_we_push_is_not_overwritten(hub: Hub, run: Path) -> None:
    push(hub, run)
    edit(hub, "notes.md", b"")
    del hub.repos[REPO].head()["notes.md"]  # the head has moved, the files are ours
    hub.fail("preupload", nth=3, act=lambda: edit(hub, "README.md", EDITED))
    with pytest.raises(HubError, match="a card that somebody changed"):
        push(hub, run)
    assert hub.repos[REPO].head()["README.md"] == EDITED


def verify(hub: Hub) -> list[str]:
    return verify_repository(REPO, say=Told(), client=HfApi(endpoint=hub.url), pause=0.01)


def test_a_pushed_repository_verifies(hub: Hub, run: Path) -> None:
    push(hub, run)
    assert verify(hub) == []


def test_a_file_that_is_not_listed_is_reported_and_never_fetched(hub: Hub, run: Path) -> None:
    push(hub, run)
    extra = ["diffusion_pytorch_model.bin", "pipeline.py", "kohya/x.ckpt", ".hidden/y.pt", "z.txt"]
    for name in extra:
        edit(hub, name, b"\x80\x04")
    hub.fetched.clear()
    assert sorted(verify(hub)) == sorted(f"{name}: not listed" for name in extra)
    assert hub.fetched
    assert not set(hub.fetched) & set(extra)


@pytest.mark.parametrize("name", [LORA, "kohya/violin.safetensors", "README.md"])
def test_a_file_changed_on_the_hub_does_not_verify(hub: Hub, run: Path, name: str) -> None:
    push(hub, run)
    edit(hub, name, b"something else")
    assert verify(hub) == [f"{name}: changed"]


def test_what_the_hub_serves_for_the_lora_is_hashed(hub: Hub, run: Path) -> None:
    push(hub, run)
    hub.served[LORA] = bytes((run / "package" / "lora" / LORA).stat().st_size)
    assert verify(hub) == [f"{LORA}: changed"]


def test_a_missing_file_and_a_missing_table_do_not_verify(hub: Hub, run: Path) -> None:
    push(hub, run)
    del hub.repos[REPO].head()["images/before_after.png"]
    assert verify(hub) == ["images/before_after.png: missing"]
    edit(hub, "editforge.json", b'{"files": {"README.md": 1}}')
    assert verify(hub) == ["editforge.json: no table of files"]


def test_what_is_no_package_on_the_hub_is_an_answer(hub: Hub) -> None:
    hub.repo(REPO, private=True, files={"README.md": EDITED})
    with pytest.raises(PackageError, match="nothing to verify here"):
        verify(hub)
    hub.repos.clear()
    with pytest.raises(HubError, match="answered 404"):
        verify(hub)
    for name in ("violin", "runs/a/b", "runs/vio lin"):
        with pytest.raises(PackageError, match="no such folder"):
            verify_repository(name, client=HfApi(endpoint=hub.url))


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """The client finds the server as a user's does, through its own variables."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def test_the_command_refuses_an_edited_card_and_its_hint_works(
    hub: Hub, run: Path, tmp_path: Path
) -> None:
    push(hub, run)
    edit(hub, "README.md", EDITED)
    command = [sys.executable, "-m", "editforge", "push", str(run), REPO, "-y"]
    settings = {"env": environment(hub, tmp_path / "home"), "text": True, "timeout": 60}
    first = subprocess.run(command, capture_output=True, **settings)  # type: ignore[call-overload]
    assert first.returncode == 2
    assert "--replace-card" in first.stderr
    second = subprocess.run([*command, "--replace-card"], capture_output=True, **settings)  # type: ignore[call-overload]
    assert second.returncode == 0, second.stderr
    assert remote_digests(hub) == digests(run / "package" / "lora")


def test_the_command_verifies_a_repository(hub: Hub, run: Path, tmp_path: Path) -> None:
    push(hub, run)
    edit(hub, "pipeline.py", b"import os")
    done = subprocess.run(
        [sys.executable, "-m", "editforge", "verify", REPO, "--json"],
        env=environment(hub, tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["problems"] == ["pipeline.py: not listed"]
    assert not list((tmp_path / "home").rglob("pipeline.py"))


def test_a_pull_request_is_opened_once_and_gets_the_card(hub: Hub, run: Path) -> None:
    repo = hub.repo(REPO, private=True)
    hub.fail("commit", 403, nth=2)
    with pytest.raises(HubError):
        push(hub, run, create_pr=True)
    hub.faults.clear()
    done = push(hub, run, create_pr=True)
    assert done.pull_request == "refs/pr/1"
    assert [(ref, title) for ref, title, _ in repo.log] == [
        ("refs/pr/1", "Add lora"),
        ("refs/pr/1", "Add the card"),
    ]
    assert set(repo.head()) == {".gitattributes"}
    assert remote_digests(hub, "refs/pr/1") == done.files
    told = Told()
    push(hub, run, create_pr=True, say=told)
    assert "nothing to do" in told[-1]


def test_a_lost_answer_opens_no_second_pull_request(hub: Hub, run: Path) -> None:
    repo = hub.repo(REPO, private=True)
    hub.fail("commit")
    with pytest.raises(HubError, match="out of reach"):
        push(hub, run, create_pr=True)
    assert list(repo.refs) == ["main", "refs/pr/1"]


def test_a_dry_run_makes_no_request(hub: Hub, run: Path) -> None:
    told = Told()
    assert push(hub, run, dry_run=True, say=told).step == "planned"
    assert hub.calls == []
    assert not (run / "push").exists()
    assert any(LORA in line for line in told)
    assert REPO in told[-1]
    assert "private" in told[-1]


def test_without_a_yes_nothing_is_sent(hub: Hub, run: Path) -> None:
    with pytest.raises(HubError, match="not confirmed"):
        push(hub, run, confirm=lambda question: REPO not in question)
    assert hub.calls == []


def test_a_wrong_token_is_an_answer(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubError, match="hf auth login"):
        push(hub, run)
    assert hub.counts["create"] == 1


def damage(folder: Path, how: str) -> None:
    if how == "changed":
        write_text(folder / "reproduce" / "recipe.yaml", "concepts: [cello]\n")
    elif how == "missing":
        (folder / "images" / "before_after.png").unlink()
    elif how == "added":
        write_text(folder / "notes.txt", "mine")
    elif how == "link":
        (folder / "README.md").rename(folder.parent / "card")
        (folder / "README.md").symlink_to(folder.parent / "card")
    elif how == "pickle":
        (folder / "unet.bin").write_bytes(b"\x80\x04")
        seal(folder, True)
    elif how == "torn":
        (folder / LORA).write_bytes((folder / LORA).read_bytes()[:-4])
        seal(folder, True)
    elif how == "empty":
        write_safetensors(folder / LORA, {}, {})
        seal(folder, True)
    elif how == "facts":
        facts = json.loads((folder / "editforge.json").read_text())
        write_json(folder / "editforge.json", {**facts, "gate": {"passed": None}})
    elif how == "card":
        (folder / "README.md").unlink()
        seal(folder, True)


@pytest.mark.parametrize(
    "how",
    ["changed", "missing", "added", "link", "pickle", "torn", "empty", "facts", "card"],
)
def test_a_damaged_package_is_refused_before_any_request(hub: Hub, run: Path, how: str) -> None:
    damage(run / "package" / "lora", how)
    with pytest.raises(PackageError):
        push(hub, run)
    assert hub.calls == []


@pytest.mark.parametrize("gate", [{}, {"passed": 0}, {"passed": "no"}, None])
def test_an_unclear_verdict_is_no_verdict(hub: Hub, run: Path, gate: object) -> None:
    folder = run / "package" / "lora"
    facts = json.loads((folder / "editforge.json").read_text())
    write_json(folder / "editforge.json", {**facts, "gate": gate})
    with pytest.raises(PackageError, match="no verdict"):
        push(hub, run, allow_failed=True)
    assert hub.calls == []


@pytest.mark.parametrize("repo", ["violin", "a/b/c", "ann/vio lin", "-/x", "ann/x.git"])
def test_a_bad_name_is_refused_before_any_request(hub: Hub, run: Path, repo: str) -> None:
    with pytest.raises(EditforgeError):
        push_package(run, repo, client=HfApi(endpoint=hub.url))
    assert hub.calls == []


DRIVER = """
import sys
from pathlib import Path
from editforge.hub.push import push_package
push_package(Path(sys.argv[1]), sys.argv[2], public=True)
"""


def test_a_killed_process_is_completed_by_the_next(hub: Hub, run: Path, tmp_path: Path) -> None:
    """Killed when the first commit has reached the Hub and its answer has not reached us."""
    variables = environment(hub, tmp_path / "home")
    command = [sys.executable, "-c", DRIVER, str(run), REPO]
    first = subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    hub.fail("commit", act=first.kill)
    output = first.communicate(timeout=60)[0]
    assert first.returncode == -9
    assert receipt(run)["step"] == "created"
    second = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    assert second.returncode == 0, second.stderr
    assert [title for _, title, _ in hub.repos[REPO].log] == ["Add lora", "Add the card"]
    assert not hub.repos[REPO].private
    written = "".join(path.read_text() for path in (run / "push").iterdir())
    for text in (output, second.stdout, second.stderr, written):
        assert TOKEN not in text
    assert str(tmp_path) not in written
