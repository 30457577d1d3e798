"""Workers that Ray carries: the same bytes however many there are, and whatever dies. Needs the extra `cluster`."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations as new
from torch.nn.utils import spectral_norm, weight_norm

from multishield.errors import UserError
from multishield.forward import freeze
from paper import workers
from paper.workers import Workers, over_ray

ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `cluster` is not installed")

# A shield of two small models, attacked in pieces of 16 images, and the batches of the baseline.
EVALUATION = """
import hashlib, os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from paper.pipeline import arithmetic
arithmetic.choose("portable")
import torch
from multishield import Ball, Budget, Images, MultiShield, StoredImages, evaluate, resume
from multishield.budget import Components, Joint, Sanity
from paper import workers
from paper.stages.baseline import Stage
from small import Convolutions

DRIVER, MISHAP, KILLED, resume.PIECE = os.getpid(), os.environ.get("MISHAP"), Path("killed").resolve(), 16

class Marked(Convolutions):
    def forward(self, x):
        if MISHAP == "slow" and os.getpid() != DRIVER:
            time.sleep(0.02)
        if MISHAP == "killed" and os.getpid() != DRIVER and (x[:, 0, 0, 0] > 0.9).any() and not KILLED.exists():
            KILLED.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)

torch.manual_seed(0)
shield, x = MultiShield(Marked(), Marked(), 0.001), torch.rand(60, 3, 8, 8) * 0.5
y, x[37, 0, 0, 0] = shield.classifier(x).argmax(1), 0.95
budget = Budget(joint=Joint(1, 6), components=Components(1, 6), sanity=Sanity(2))
baseline = object.__new__(Stage)
vars(baseline).update(params=SimpleNamespace(baseline=SimpleNamespace(attacks=["apgd-ce"], batch_size=25), seed=0))
vars(baseline).update(classifier=shield.classifier, data=Images(x, y, torch.arange(60)), item="net", ball=Ball(0.02))

def result(kept=None):
    torch.manual_seed(int(time.time()))  # whoever draws from it shows
    baseline.resume, baseline.each, baseline.unaware = kept, workers.each(), StoredImages()
    options = {"budget": budget, "attacks": ["components", "joint"], "resume": kept, "each": baseline.each}
    baseline.attack()
    stored = evaluate(shield, x, y, 0.02, **options).attacked | {"baseline": baseline.unaware}
    digest = hashlib.sha256()
    for images in (one[:] for one in stored.values()):
        digest.update(images.images.numpy().tobytes())
        digest.update(str((images.broken_by, images.forwards, images.backwards)).encode())
    return digest.hexdigest()
"""
ALONE = f"{EVALUATION}\nprint(result())"


@pytest.fixture
def script(project_root):
    """Starts a script in a project, with MULTISHIELD_WORKERS and more of the environment."""

    def run(code, workers="2", **more):
        more |= {"MULTISHIELD_WORKERS": workers, "PYTHONPATH": str(Path(__file__).parents[1])}
        options = {"cwd": project_root, "env": os.environ | more, "text": True, "timeout": 900}
        for _ in range(3):
            done = subprocess.run([sys.executable, "-uc", code], capture_output=True, **options)
            if "try again with less load" not in done.stderr:
                break
        # Ray ends with the number of the signal.
        assert done.returncode in (0, signal.SIGTERM, -signal.SIGKILL), done.stderr
        assert "SIGTERM" not in done.stderr, "a driver that is told to end leaves no trace of a crash"
        return done.stdout

    return run


@ray
def test_one_two_and_three_workers_give_the_same_bytes_and_a_killed_one_changes_nothing(script, project_root):
    loop = """
for number in "123":
    os.environ["MULTISHIELD_WORKERS"] = number
    print(result(), "ray" in sys.modules)
    if number > "1":
        sys.modules["ray"].shutdown()
"""
    words = script(EVALUATION + loop, MISHAP="killed").split()
    assert words[1::2] == ["False", "True", "True"], "without Ray's words about the killed worker"
    assert len(set(words[::2])) == 1
    assert (project_root / "killed").exists()


# In the driver: `lose` is called as soon as results are on disk.
LOSE = """
import threading

def wait():
    while not list(Path("kept").rglob("0*")):
        time.sleep(0.1)
    lose()

threading.Thread(target=wait, daemon=True).start()
print(result(Path("kept")))
"""


@ray
@pytest.mark.long
def test_a_driver_that_is_killed_continues_where_it_was(script, project_root):
    assert not script(f"{EVALUATION}\ndef lose():\n    os.kill(os.getpid(), signal.SIGKILL)\n{LOSE}", MISHAP="slow")
    before = {file: file.stat().st_mtime_ns for file in (project_root / "kept").rglob("0*")}
    assert before
    again = script(f"{EVALUATION}\nprint(result(Path('kept')))")
    assert {file: file.stat().st_mtime_ns for file in before} == before, "finished pieces are not done again"
    assert again == script(ALONE, workers="1")


@ray
@pytest.mark.long
def test_a_machine_that_leaves_in_the_middle_changes_nothing(script):
    cluster = """
from paper.workers import QUIET
os.environ.update(QUIET)
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = cluster.add_node(num_cpus=1)
os.environ["MULTISHIELD_WORKERS"] = cluster.address

def lose():
    cluster.remove_node(other, allow_graceful=False)
    print("left")
"""
    expected = script(ALONE, workers="1").split()
    assert sorted(script(EVALUATION + cluster + LOSE, MISHAP="slow").split()) == sorted(["left", *expected])


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm, new.weight_norm, new.spectral_norm])
def test_a_network_with_computed_weights_can_be_sent(norm):
    pickle = pytest.importorskip("cloudpickle")  # that of Ray
    network, x = freeze(nn.Sequential(norm(nn.Conv2d(3, 3, 3)), nn.ReLU())), torch.rand(2, 3, 8, 8)
    for _ in range(2):  # the network itself is as it was
        assert torch.equal(pickle.loads(pickle.dumps(workers._plain_copy(network)))(x), network(x))


def test_a_model_that_cannot_be_sent_is_one_sentence(monkeypatch):
    monkeypatch.setattr(workers, "_started", lambda _: Mock(cluster_resources=lambda: {"CPU": 1}))
    locked = nn.Linear(1, 1)
    locked.lock = threading.Lock()
    with pytest.raises(UserError, match=r"^a model cannot be sent to workers \(.*lock.*\); unset MULTISHIELD_WORKERS$"):
        list(over_ray(Workers(), partial(print, locked), [1]))


# One Ray for all of these, because each start costs seconds.
PIECES = """
import os, signal
from functools import partial
from pathlib import Path
from multishield import UserError
from paper.workers import Workers, over_ray

def listening():
    lines = [line.split() for kind in ("tcp", "tcp6") for line in Path("/proc/net", kind).read_text().splitlines()[1:]]
    return {fields[1] for fields in lines if fields[3] == "0A"}

def work(mishap, piece):
    if piece == 3 and mishap:
        raise mishap
    return piece, os.getpid(), os.environ["OMP_NUM_THREADS"]

before = listening()
pieces, pids, threads = zip(*over_ray(Workers(count=2), partial(work, None), range(20)))
print(sorted(pieces) == list(range(20)), os.getpid() in pids, set(threads))
print({address.split(":")[0] for address in listening() - before})
for mishap in (UserError("lower it"), ValueError("no such image")):
    try:
        list(over_ray(Workers(count=2), partial(work, mishap), range(6)))
    except UserError as error:
        print(error)
os.kill(os.getpid(), signal.SIGTERM)
"""


@ray
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pieces_errors_and_ends(script):
    done, addresses, *errors = script(PIECES).splitlines()
    assert done == "True False {'1'}", "every piece once, elsewhere, by one thread"
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert set() < eval(addresses) <= loopback, "nothing listens to the network"
    assert (errors[0], len(errors)) == ("lower it", 2)
    assert errors[1].startswith("a worker failed (ValueError: no such image); finished images are kept")


@ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host:6379"])
def test_an_address_where_nobody_answers_is_one_sentence(address):
    with pytest.raises(UserError, match=rf"^the Ray cluster at {address} cannot be reached .*WORKERS=local$"):
        list(over_ray(Workers(address, None), partial(print), [1]))


def test_without_ray_a_sentence_says_how_to_install_it_and_one_worker_does_not_ask(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("MULTISHIELD_WORKERS", "1")
    assert workers.each() is map
    monkeypatch.setenv("MULTISHIELD_WORKERS", "2")
    with pytest.raises(UserError, match=r"pip install --requirement requirements-cluster.lock$"):
        list(workers.each()(partial(print), [1]))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", Workers("", 1)),
        ("4", Workers("", 4)),
        ("local", Workers("", None)),
        ("head:6379", Workers("head:6379", None)),
        ("0", r"^MULTISHIELD_WORKERS is '0'; accepted are a number of processes from 1[^\n]*$"),
        ("ray://head:10001", "accepted are a number"),
        ("2", "Ray starts no workers of /a b/python, whose path has a space; make the environment"),
    ],
)
def test_the_environment_sets_the_workers(monkeypatch, value, expected):
    monkeypatch.setenv("MULTISHIELD_WORKERS", value)
    monkeypatch.setattr(sys, "executable", "/a b/python" if "space" in str(expected) else sys.executable)
    with pytest.raises(UserError, match=expected) if isinstance(expected, str) else nullcontext():
        assert workers.setting() == expected
