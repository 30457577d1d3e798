"""Workers that Ray carries: the same bytes however many there are, and whatever dies. Needs the extra `cluster`."""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import pytest

from multishield.errors import UserError
from paper.workers.cluster import streamed

ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `cluster` is not installed")

# A shield of two small models, attacked; MISHAP says what happens to a worker that meets the image MARKED.
SCRIPT = """
import hashlib, os, signal, sys, time
from pathlib import Path
from paper.pipeline import arithmetic
arithmetic.choose("portable")
import torch
from torch import nn
from multishield.attacks.loop import checkpoint
from multishield.attacks.threat_model import Ball
from multishield.images import Split
from multishield.portfolio import Attacker
from paper.stages.baseline import run_baseline
from multishield.evaluation import DEFAULTS
from paper.params import Adaptive, Baseline
from multishield.shield import MultiShield
from multishield.errors import UserError

DRIVER, MISHAP, LOG = os.getpid(), os.environ.get("MISHAP", ""), Path("log.txt").resolve()
MARKED = 37

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        layers = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        if MISHAP and os.getpid() != DRIVER and (x[:, 0, 0, 0] > 0.9).any():
            mishap()
        if MISHAP == "driver killed" and os.getpid() != DRIVER:
            time.sleep(0.02)
        return self.layers(x)

def mishap():
    if MISHAP == "fails":
        raise ValueError("no such image")
    if MISHAP in ("killed", "hangs") and not Path(f"{LOG}.{MISHAP}").exists():
        Path(f"{LOG}.{MISHAP}").touch()
        if MISHAP == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10_000)

torch.manual_seed(0)
shield = MultiShield(Small().eval().requires_grad_(False), Small().eval().requires_grad_(False), 0.001)
x = torch.rand(60, 3, 8, 8) * 0.5
y = shield.classifier(x).argmax(1)
x[MARKED, 0, 0, 0] = 0.95
data = Split(x, y, torch.arange(60))
short = {"parts": {"targets": 2, "steps": 10}, "joint": {"targets": 2, "steps": 10, "restarts": 1}}
attacker = Attacker("model", Adaptive.model_validate(DEFAULTS.model_dump() | short), Ball(0.02), 0)

def result():
    torch.manual_seed(int(time.time()))  # whoever draws from it shows
    parts = attacker.parts(shield, data)
    joint = attacker.joint(shield, data, tuple(parts.values()))
    alone = run_baseline("model", shield.classifier, data, Baseline(attacks=["apgd-ce"], batch_size=25), Ball(0.02), 0)
    digest = hashlib.sha256()
    for found in (*parts.values(), joint, alone):
        digest.update(found.images.numpy().tobytes() + str((found.broken_by, found.forwards, found.backwards)).encode())
    return digest.hexdigest()
"""
ONCE = (
    SCRIPT
    + """
try:
    print(result())
except UserError as error:
    sys.exit(f"error: {error}")
"""
)


@pytest.fixture
def script(project_root):
    """Runs a script in a project, with MULTISHIELD_WORKERS and more of the environment."""

    def run(code, workers="2", wait=True, **more):
        variables = {**os.environ, "MULTISHIELD_WORKERS": workers, **more}
        command = [sys.executable, "-c", code]
        if not wait:
            return subprocess.Popen(command, cwd=project_root, env=variables, stderr=subprocess.DEVNULL)
        return subprocess.run(command, cwd=project_root, env=variables, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What one process computes."""
    folder = tmp_path_factory.mktemp("alone")
    for name in ("params.yaml", "dvc.yaml"):
        (folder / name).touch()
    variables = {**os.environ, "MULTISHIELD_WORKERS": "1"}
    return ended_well(
        subprocess.run([sys.executable, "-c", ONCE], cwd=folder, env=variables, capture_output=True, text=True)
    )


def ended_well(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


@ray
def test_one_two_and_three_workers_with_other_pieces_give_the_same_bytes(script, expected):
    code = (
        SCRIPT
        + """
for workers, pieces in (("1", 2**29), ("1", 5_000), ("2", 2**29), ("3", 5_000)):
    os.environ["MULTISHIELD_WORKERS"], checkpoint.AT_ONCE = workers, pieces
    print(result())
"""
    )
    assert ended_well(script(code)) == 4 * expected


@ray
def test_a_driver_that_is_told_to_end_leaves_no_trace_of_a_crash(script):
    done = script(SCRIPT + "\nimport signal\nprint(result())\nsys.stdout.flush()\nos.kill(os.getpid(), signal.SIGTERM)")
    assert done.returncode != 0
    assert len(done.stdout.strip()) == 64
    assert "SIGTERM" not in done.stderr


@ray
@pytest.mark.parametrize("mishap", ["killed", pytest.param("hangs", marks=pytest.mark.long)])
def test_a_worker_that_dies_or_hangs_changes_nothing(script, expected, mishap):
    assert ended_well(script(ONCE, MISHAP=mishap, MULTISHIELD_PATIENCE="40")) == expected


@ray
@pytest.mark.long
def test_an_image_that_fails_three_times_is_one_sentence(script):
    done = script(ONCE, MISHAP="fails")
    assert done.returncode == 1
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("error: image 37 (counted from 0) has failed 3 times on the workers")
    assert "ValueError: no such image" in sentence


@ray
@pytest.mark.long
def test_memory_that_runs_out_is_one_sentence(script):
    """Ray kills what computes where more than a part of the machine's memory is taken: here of any machine's."""
    short = {"RAY_memory_usage_threshold": "0.0001", "RAY_memory_monitor_refresh_ms": "50"}
    done = script(ONCE, **short)
    assert done.returncode == 1
    sentence = done.stderr.strip().splitlines()[-1]
    assert "has failed 3 times on the workers" in sentence
    assert "out of memory" in sentence


@ray
@pytest.mark.long
def test_a_driver_that_is_killed_goes_on_where_it_was(script, expected, project_root):
    running = script(ONCE, wait=False, MISHAP="driver killed", MULTISHIELD_RUN="adaptive")
    kept = project_root / ".multishield" / "resume" / "adaptive"
    patience = time.monotonic() + 120
    while not list(kept.rglob("0*")):
        assert time.monotonic() < patience
        assert running.poll() is None
        time.sleep(0.2)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = {file: file.stat().st_mtime_ns for file in kept.rglob("0*")}
    assert ended_well(script(ONCE, MULTISHIELD_RUN="adaptive")) == expected
    assert {file: file.stat().st_mtime_ns for file in before} == before, "and what was finished is not done again"


@ray
@pytest.mark.long
def test_a_machine_that_leaves_in_the_middle_changes_nothing(script, expected):
    code = (
        SCRIPT
        + """
import threading
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = cluster.add_node(num_cpus=1)
os.environ["MULTISHIELD_WORKERS"] = cluster.address
computing = []

def leave():
    while not computing:
        time.sleep(0.1)
    cluster.remove_node(other, allow_graceful=False)
    print("left", file=sys.stderr)

taken = checkpoint._Watch.__call__
checkpoint._Watch.__call__ = lambda *args: (computing.append(1), taken(*args))
threading.Thread(target=leave).start()
print(result())
import ray
ray.shutdown()
cluster.shutdown()
"""
    )
    done = script(code, MISHAP="driver killed")
    assert ended_well(done) == expected
    assert "left" in done.stderr


@ray
@pytest.mark.parametrize(
    ("workers", "more", "sentence"),
    [
        ("2", {"MULTISHIELD_GPUS": "8"}, "gpus is 8 for each worker, and there are 0; set gpus: 0"),
        ("127.0.0.1:1", {}, "the Ray cluster at 127.0.0.1:1 cannot be reached"),
        ("no-such-host:6379", {}, "the Ray cluster at no-such-host:6379 cannot be reached"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_sentence(script, workers, more, sentence):
    done = script(ONCE, workers, **more)
    assert done.returncode == 1
    assert sentence in done.stderr.strip().splitlines()[-1]


@ray
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_started_here_listens_on_this_machine_alone(script):
    code = """
from pathlib import Path
from paper.workers.cluster import _joined
from paper.workers.setting import Workers

def listening():
    lines = [line.split() for kind in ("tcp", "tcp6") for line in Path("/proc/net", kind).read_text().splitlines()[1:]]
    return {fields[1] for fields in lines if fields[3] == "0A"}

before = listening()
ray = _joined(Workers(count=1))
ray.get(ray.remote(lambda: 1).remote())
print(*(listening() - before))
"""
    done = script(code)
    loopback = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
    found = [where.split(":")[0] for where in ended_well(done).split()]
    assert found
    assert set(found) <= set(loopback)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed here")
def test_without_ray_a_sentence_says_how_to_install_it(script):
    done = script(ONCE)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("pip install --requirement requirements-cluster.lock")


def test_what_is_emitted_comes_in_lists_and_an_error_after_them():
    def call(emit):
        emit([0], "first", 2)
        emit([], "nothing", 1)
        emit([], "still nothing", 1)
        emit([1], "second", 0)
        raise UserError("enough")

    lists = streamed(call)
    assert next(lists) == [([0], "first", 2), ([1], "second", 0)]
    with pytest.raises(UserError, match="enough"):
        next(lists)
