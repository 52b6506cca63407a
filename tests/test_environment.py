"""The suite gives the same answers whatever the caller's shell says about the Hub."""

import os
import subprocess
import sys

import pytest

from tests.command import ROOT

PUSH = "tests/test_push.py::test_a_push_is_private_and_holds_the_package"


@pytest.mark.parametrize(
    "shell",
    [
        {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        {"HF_TOKEN": "hf_wrong", "HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": "/nowhere"},
    ],
    ids=["offline", "elsewhere"],
)
def test_a_push_test_passes_in_any_shell(shell):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", PUSH],
        cwd=ROOT, env={**os.environ, **shell}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
