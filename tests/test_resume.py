"""Long computations that are killed go on where they were, and end with the same bytes."""

import os
import signal
import subprocess
import sys

import pytest

# Ten rows in chunks of three; each computed chunk is logged. A chunk named in KILL_AT dies as by `kill -9`.
SCRIPT = """
import os, signal
import torch
from multishield.files import save_tensors
from multishield.resume import in_chunks

def compute(part):
    if os.environ.get("KILL_AT") == str(part.start):
        os.kill(os.getpid(), signal.SIGKILL)
    with open("log.txt", "a") as log:
        log.write(f"{part.start} ")
    return {"rows": torch.rand(part.stop - part.start, generator=torch.Generator().manual_seed(part.start))}

from pathlib import Path
save_tensors(Path("result.safetensors"), in_chunks("squares", compute, 10, 3, "inputs", int(os.environ["INPUT"])))
"""


def run(folder, kill_at="", given="1"):
    variables = {**os.environ, "KILL_AT": kill_at, "INPUT": given}
    return subprocess.run([sys.executable, "-c", SCRIPT], cwd=folder, env=variables, capture_output=True).returncode


@pytest.fixture
def project(tmp_path):
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_killed_run_goes_on_after_its_last_chunk_with_the_same_bytes(project):
    assert run(project) == 0
    undisturbed = (project / "result.safetensors").read_bytes()
    (project / "result.safetensors").unlink()
    (project / "log.txt").unlink()
    assert run(project, kill_at="3") == -signal.SIGKILL
    assert run(project, kill_at="9") == -signal.SIGKILL
    assert run(project) == 0
    assert (project / "log.txt").read_text().split() == ["0", "3", "6", "9"], "each chunk once"
    assert (project / "result.safetensors").read_bytes() == undisturbed


def test_state_of_other_inputs_is_not_taken_and_finished_state_is_removed(project):
    assert run(project, kill_at="6") == -signal.SIGKILL
    assert run(project, given="2") == 0
    assert (project / "log.txt").read_text().split() == ["0", "3", "0", "3", "6", "9"]
    assert len(list((project / ".multishield" / "resume").iterdir())) == 1, "the killed run's state alone is left"
