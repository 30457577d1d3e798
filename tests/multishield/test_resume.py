"""Long computations that are killed go on where they were, and end with the same bytes."""

import os
import signal
import subprocess
import sys

import torch

from multishield.tensors import load_tensors, save_tensors

# Ten rows in chunks of three; each computed chunk is logged. A chunk named in KILL_AT dies as by `kill -9`.
SCRIPT = """
import os, signal
import torch
from multishield.tensors import save_tensors
from paper.workers.parts import in_parts

def compute(model, part):
    if os.environ.get("KILL_AT") == str(part.start):
        os.kill(os.getpid(), signal.SIGKILL)
    with open("log.txt", "a") as log:
        log.write(f"{part.start} ")
    return {"rows": torch.rand(part.stop - part.start, generator=torch.Generator().manual_seed(part.start))}

from pathlib import Path
parts = in_parts("squares", compute, torch.nn.Identity(), lambda part: part, 10, 3, "inputs", int(os.environ["INPUT"]))
save_tensors(Path("result.safetensors"), {"rows": torch.cat([p["rows"] for p in parts])})
"""


# A real attack on 30 images, kept as soon as one is finished; dies after KILL_AT forward passes.
ATTACK = """
import os, signal
from pathlib import Path
import torch
from multishield.attacks.joint import joint
from multishield.tensors import save_tensors
from multishield.attacks.resumable import attack_resumably
from multishield.shield import MultiShield

torch.manual_seed(0)
models = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)).requires_grad_(False) for _ in range(2)]
shield = MultiShield(*models, 0.001)
x = torch.rand(30, 3, 8, 8)
y, scores, passes = shield.classifier(x).argmax(1), shield.scores, 0

def counting(pixels):
    global passes
    passes += 1
    if str(passes) == os.environ.get("KILL_AT"):
        os.kill(os.getpid(), signal.SIGKILL)
    return scores(pixels)

shield.scores = counting

def attack(shield, part, watch):
    joint(shield, x[part], y[part], eps=0.03, seed=0, ids=part, targets=4, steps=10, batch_size=8, watch=watch)

r = attack_resumably("joint", attack, shield, lambda part: part, 30, "inputs", int(os.environ["INPUT"]), every=0)
r.save(Path("result.safetensors"))
print(passes)
"""


def script(folder, kill_at="", given="1", code=SCRIPT):
    variables = {**os.environ, "KILL_AT": kill_at, "INPUT": given}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=variables, capture_output=True, text=True)


def test_a_killed_run_goes_on_after_its_last_chunk_with_the_same_bytes(project_root):
    assert script(project_root).returncode == 0
    undisturbed = (project_root / "result.safetensors").read_bytes()
    (project_root / "result.safetensors").unlink()
    (project_root / "log.txt").unlink()
    assert script(project_root, kill_at="3").returncode == -signal.SIGKILL
    assert script(project_root, kill_at="9").returncode == -signal.SIGKILL
    assert script(project_root).returncode == 0
    assert (project_root / "log.txt").read_text().split() == ["0", "3", "6", "9"], "each chunk once"
    assert (project_root / "result.safetensors").read_bytes() == undisturbed


def test_state_of_other_inputs_is_not_taken_and_finished_state_is_removed(project_root):
    assert script(project_root, kill_at="6").returncode == -signal.SIGKILL
    assert script(project_root, given="2").returncode == 0
    assert (project_root / "log.txt").read_text().split() == ["0", "3", "0", "3", "6", "9"]
    assert len(list((project_root / ".multishield" / "resume").iterdir())) == 1, "the killed run's state alone is left"


def test_an_attack_that_is_killed_at_several_points_ends_with_the_same_bytes(project_root):
    undisturbed = script(project_root, code=ATTACK)
    assert undisturbed.returncode == 0, undisturbed.stderr
    expected, passes = (project_root / "result.safetensors").read_bytes(), int(undisturbed.stdout)
    (project_root / "result.safetensors").unlink()
    kept = []
    for share in (0.1, 0.3, 0.3):
        assert script(project_root, kill_at=str(int(share * passes)), code=ATTACK).returncode == -signal.SIGKILL
        kept.append(len(list((project_root / ".multishield" / "resume").rglob("0*"))))
    assert 0 < kept[0] < kept[1] < kept[2], "what was finished is kept"
    last = script(project_root, code=ATTACK)
    assert int(last.stdout) < passes, "and not computed again"
    assert (project_root / "result.safetensors").read_bytes() == expected


def test_views_and_shared_tensors_are_saved_whole(tmp_path):
    rows = torch.arange(6.0).reshape(2, 3)
    tensors = {"rows": rows, "same": rows, "turned": rows.T, "first": rows[:1], "empty": rows[:0]}
    loaded = load_tensors(save_tensors(tmp_path / "t.safetensors", tensors))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
