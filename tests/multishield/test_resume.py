"""Long computations that are killed continue where they were, and end with the same bytes."""

import os
import signal
import subprocess
import sys

import torch
from torch import nn

from multishield import AttackedImages, Images
from multishield.resume import Checkpoint, attack_resumably, fingerprint

# A real attack on 30 images, each kept as soon as it is finished; the process dies after KILL_AT forward passes.
ATTACK = """
import os, signal
from pathlib import Path
import torch
from torch import nn
from multishield import Ball, Images, MultiShield, joint, resume
from multishield.files import save_tensors

torch.manual_seed(0)
models = [nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).requires_grad_(False) for _ in range(2)]
shield, passes = MultiShield(*models, 0.001), []

def count(*_):
    passes.append(1)
    if str(len(passes)) == os.environ.get("KILL_AT"):
        os.kill(os.getpid(), signal.SIGKILL)

x = torch.rand(30, 3, 8, 8)
data = Images(x, shield.classifier(x).argmax(1), torch.arange(30))
shield.classifier.register_forward_hook(count)

def attack(data, starts, watch):
    options = {"ball": Ball(0.03), "seed": 0, "targets": 4, "steps": 10, "batch_size": 8}
    return joint(shield, data.pixels, data.labels, ids=data.ids, watch=watch, **options)

resume.EVERY = 0
result = resume.attack_resumably("joint", attack, data, [], resume.Checkpoint(Path("kept"), "joint", "inputs"))
save_tensors(Path("result.safetensors"), result.tensors())
print(len(passes))
"""


def test_an_attack_that_is_killed_at_several_points_ends_with_the_same_bytes(tmp_path):
    def run(folder, kill_at=""):
        (tmp_path / folder).mkdir(exist_ok=True)
        command, variables = [sys.executable, "-c", ATTACK], {**os.environ, "KILL_AT": kill_at}
        return subprocess.run(command, cwd=tmp_path / folder, env=variables, capture_output=True, text=True)

    undisturbed, files = run("undisturbed"), []
    assert undisturbed.returncode == 0, undisturbed.stderr
    for share in (0.2, 0.4):
        killed = run("killed", kill_at=str(int(share * int(undisturbed.stdout))))
        assert killed.returncode == -signal.SIGKILL
        files.append(len(list((tmp_path / "killed" / "kept").rglob("0*"))))
    assert 0 < files[0] < files[1], "finished images are on disk"
    assert int(run("killed").stdout) < int(undisturbed.stdout), "and are not computed again"
    results = [(tmp_path / folder / "result.safetensors").read_bytes() for folder in ("undisturbed", "killed")]
    assert results[0] == results[1]


def test_values_are_kept_by_name_and_damaged_ones_are_missing(tmp_path):
    value = {"row": torch.arange(3), "names": ["a", "b"], "loss": 0.5}
    checkpoint = Checkpoint(tmp_path, "training net", 1)
    checkpoint.put("00", value)
    checkpoint.put("01", {"row": torch.zeros(1)})
    assert [v["row"].tolist() for v in Checkpoint(tmp_path, "training net", 1).values()] == [[0, 1, 2], [0]]
    assert Checkpoint(tmp_path, "training net", 2).get("00") is None, "other inputs are another computation"
    file = next(tmp_path.rglob("00"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert checkpoint.get("00") is None
    assert len(checkpoint.values()) == 1
    without_a_folder = Checkpoint(None, "training net", 1)
    without_a_folder.put("00", 1)
    assert without_a_folder.get("00") is None
    assert without_a_folder.values() == []


def test_a_fingerprint_names_every_bit_of_its_inputs():
    model, x = nn.Linear(2, 2), torch.zeros(4)
    names = [fingerprint(model, x, {"eps": 1}), fingerprint(model, x, {"eps": 2}), fingerprint(model, x[:3])]
    names += [fingerprint(model, x.double(), {"eps": 1}), fingerprint(model, x.view(2, 2), {"eps": 1})]
    model.weight.data[0, 0] += 1
    names.append(fingerprint(model, x, {"eps": 1}))
    assert len(set(names)) == len(names)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_pieces_that_return_in_any_order_are_joined_in_order(tmp_path):
    data = Images(torch.rand(300, 3, 2, 2), torch.zeros(300).long(), torch.arange(300))
    sizes = []

    def attack(data, starts, watch):
        return AttackedImages(data.images, [str(i) for i in data.ids.tolist()], data.ids, starts[0].forwards)

    def backwards(work, pieces):
        results = [work(piece) for piece in pieces]
        sizes.extend(len(index) for index, _ in results)
        return reversed(results)

    starts, checkpoint = [AttackedImages.untouched(data)], Checkpoint(tmp_path, "t")
    for _ in range(2):
        result = attack_resumably("t", attack, data, starts, checkpoint, backwards)
        assert result.broken_by == [str(i) for i in range(300)]
        assert torch.equal(result.images, data.images)
    assert sizes == [128, 128, 44], "the second call computes nothing"
