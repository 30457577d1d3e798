"""What the benchmarks are made of: a renamed parameter, or a model of another kind, must not leave them behind."""

import copy

import pytest
import torch

from conftest import ROOT
from paper.models.cifar_resnet import CifarResNet
from paper.models.clip import build_clip
from paper.params import Params, RobustTower, read_yaml
from paper.pipeline import arithmetic

PROFILES = [line for line in (ROOT / "profiles" / "paper.list").read_text().split("\n") if line and line[0] != "#"]
# With attention, as CLIP's image towers have it.
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    "preprocess_cfg": {"size": 16},
}


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    """They are scripts, run in a project; the arithmetic of this process is chosen already."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(arithmetic, "choose", lambda _: None)


@pytest.mark.parametrize("name", PROFILES)
def test_the_hours_of_a_profile_are_estimated_and_shared_by_gpus(name):
    import flops

    params = Params.parse(read_yaml(ROOT / "profiles" / f"{name}.yaml"), name)
    baseline, adaptive = flops.hours(params, 0.3, 1e9, 1e9)
    assert min(baseline, adaptive) > 0
    assert (baseline + adaptive) / flops.GPUS <= flops.on_several(params, baseline, adaptive) < baseline + adaptive
    assert sum(flops.hours(params, 0.6, 1e9, 1e9)) > baseline + adaptive  # what resists costs more


def trained_once(method: str, weight: float) -> list[torch.Tensor]:
    """A pair's gradients, of the classifier and of the tower, after one batch."""
    import pairs

    torch.manual_seed(0)
    clip = build_clip(copy.deepcopy(CLIP), antialias=True)
    model = pairs.Pair(CifarResNet(8, 3), clip, torch.nn.functional.normalize(torch.randn(3, 16), dim=1))
    x, y = torch.rand(8, 3, 16, 16), torch.randint(3, (8,))
    radius = {"eps": "8/255", "steps": 1, "step_size": "10/255", "validation_steps": 1}
    params = RobustTower(method="tecoa", epochs=1, batch_size=8, learning_rate=1e-3, **radius)
    pairs.batch_loss(model, x, y, x.clone(), params, method, weight).backward()
    towers = (model.classifier, clip.model.visual)
    return [torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]) for m in towers]


@pytest.mark.parametrize("method", ["both", "reject", "sum", "diverse"])
def test_every_way_to_train_a_pair_teaches_both_models(method):
    for gradient in trained_once(method, 1.0):
        assert gradient.isfinite().all()
        assert gradient.norm() > 0


@pytest.mark.parametrize("method", ["reject", "diverse"])
def test_the_weight_of_a_pairs_second_aim_reaches_both_models(method):
    for without, with_it in zip(trained_once(method, 0.0), trained_once(method, 1.0), strict=True):
        assert not torch.allclose(without, with_it)
