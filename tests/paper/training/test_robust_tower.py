"""Robust image towers: the two losses against formulas, a killed training, and the tower that is loaded again."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from killing import Killed, data, kill_after
from multishield.errors import UserError
from multishield.files import write_json
from multishield.tensors import save_tensors
from paper import paths
from paper.models.clip import build_clip
from paper.models.zero_shot import embed_prompts, load_alignment, save_alignment
from paper.params import ClipFile, ClipTrained, RobustTower
from paper.training import robust_tower
from paper.training.attacked import perturb
from paper.training.clip import small_config

CLASSES, PROMPTS = ["ant", "bee", "cow"], ["a {}"]


def options(method="tecoa", **changes):
    values = {"eps": "4/255", "steps": 2, "step_size": "2/255", "epochs": 2, "batch_size": 20, "learning_rate": 1e-3}
    return RobustTower(method=method, validation_steps=2, **(values | changes))


def a_clip():
    torch.manual_seed(0)
    clip = build_clip(small_config("test_resnet", 32), antialias=True)
    return clip, embed_prompts(clip, CLASSES, PROMPTS)


class Scores(nn.Module):
    """An alignment whose embedding is one linear function of the pixels."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)

    def embed(self, x):
        return x.flatten(1) @ self.weights.T

    def forward(self, x):
        return F.normalize(self.embed(x), dim=1)


def test_fare_attacks_what_moves_the_embedding_furthest():
    # Of a linear embedding with one number the furthest is known: eps times the sum of the weights' sizes.
    weights = torch.randn(1, 12)
    model = robust_tower.Logits(Scores(weights), 1.0)
    x, eps = 0.3 + 0.4 * torch.rand(8, 3, 2, 2), 0.05
    loss_of = robust_tower.tower_loss(model, copy.deepcopy(model.alignment).embed, x, None, options("fare"))
    assert loss_of(x).item() == 0
    start = x + eps * (2 * torch.rand(x.shape) - 1)
    attacked = perturb(loss_of, x, lambda loss: loss, start, eps, eps / 2, 8)
    assert loss_of(attacked).item() == pytest.approx((eps * weights.abs().sum().item()) ** 2, rel=1e-4)


def test_tecoa_is_the_cross_entropy_of_scaled_cosines():
    model = robust_tower.Logits(Scores(torch.randn(3, 12)), 7.0)
    x, y = torch.rand(8, 3, 2, 2), torch.randint(0, 3, (8,))
    loss = robust_tower.tower_loss(model, None, x, y, options())(x)
    cosines = F.normalize(x.flatten(1) @ model.alignment.weights.T, dim=1)
    assert loss.item() == pytest.approx(-(7 * cosines).log_softmax(1)[torch.arange(8), y].mean().item(), rel=1e-5)


@pytest.mark.parametrize("method", ["tecoa", "fare"])
def test_training_lowers_what_an_attack_gains(project_root, method):
    clip, text = a_clip()
    before = copy.deepcopy(clip.model.visual.state_dict())
    others = {k: v.clone() for k, v in clip.model.state_dict().items() if not k.startswith("visual.")}
    history = robust_tower.harden(clip, options(method, epochs=6), data(), data(30, 1), text, seed=0)
    assert history.loss.iloc[-1] < history.loss.iloc[0]
    assert history[history.chosen].pgd_accuracy.item() == history.pgd_accuracy.max()
    assert any(not torch.equal(v, before[k]) for k, v in clip.model.visual.state_dict().items())
    assert all(torch.equal(clip.model.state_dict()[k], v) for k, v in others.items()), "the text side stays"
    assert not clip.model.training
    assert not any(p.requires_grad for p in clip.model.parameters())
    if method == "tecoa":
        assert history.pgd_accuracy.max() > history.pgd_accuracy[0] + 0.2


@pytest.mark.parametrize("method", ["tecoa", "fare"])
def test_a_killed_training_ends_with_the_same_tower(project_root, monkeypatch, method):
    def towers():
        clip, text = a_clip()
        return clip, (clip, options(method, augment=True, warmup_epochs=1), data(), data(30, 1), text)

    undisturbed, arguments = towers()
    history = robust_tower.harden(*arguments, seed=0)
    _, arguments = towers()
    restore = kill_after(monkeypatch, robust_tower, 1)
    with pytest.raises(Killed):
        robust_tower.harden(*arguments, seed=0)
    restore()
    resumed, arguments = towers()
    assert robust_tower.harden(*arguments, seed=0).equals(history)
    states = (undisturbed.model.state_dict(), resumed.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))
    assert not list((project_root / ".multishield" / "resume").iterdir()), "nothing is left behind"


def sections(folder, clip):
    """A CLIP that was trained here, and one from files."""
    save_tensors(folder / "clip.safetensors", clip.model.state_dict())
    write_json(folder / "clip.json", small_config("test_resnet", 32))
    shared = {"prompts": PROMPTS, "robust": options(epochs=1)}
    trained = {"tower": "test_resnet", "epochs": 1, "batch_size": 20, "learning_rate": 1e-3}
    files = {"config": str(folder / "clip.json"), "weights": str(folder / "clip.safetensors")}
    return ClipTrained(source="train", **trained, **shared), ClipFile(source="file", **files, **shared)


@pytest.mark.parametrize("which", [0, 1])
def test_the_robust_tower_is_the_one_that_is_loaded(project_root, tmp_path, which):
    clip, text = a_clip()
    params = sections(tmp_path, clip)[which]
    robust_tower.harden(clip, params.robust, data(), data(30, 1), text, seed=0)
    save_alignment(clip, params, small_config("test_resnet", 32), text, paths.artifacts("alignment"))
    x = data(5).pixels
    scores = F.normalize(clip.model.encode_image(2 * (2 * x - 1)), dim=1) @ text.T
    assert torch.allclose(load_alignment()(x), scores, atol=1e-5)


def test_nothing_is_trained_where_nobody_asks(project_root):
    clip, text = a_clip()
    before = copy.deepcopy(clip.model.state_dict())
    assert robust_tower.harden(clip, None, data(), data(30, 1), text, seed=0).empty
    assert all(torch.equal(v, before[k]) for k, v in clip.model.state_dict().items())


def test_without_images_there_is_one_sentence(project_root):
    clip, text = a_clip()
    with pytest.raises(UserError, match=r"alignment.robust trains an image tower, but dataset.validation is 0"):
        robust_tower.harden(clip, options(), data(), data()[:0], text, seed=0)
