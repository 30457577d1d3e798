"""Robust image towers: the two losses against formulas, a killed training, and the tower that is loaded again."""

import copy

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn import functional as F

import hub
from killing import data, same_bytes_after_death
from multishield.errors import UserError
from multishield.files import save_tensors, write_json
from multishield.zero_shot import embed_prompts
from paper import paths
from paper.models.alignment import load_alignment, save_alignment
from paper.models.clip import build_clip, small_clip
from paper.params.sections import Clips, RobustTower
from paper.training import robust_tower
from paper.training.epochs import perturb

CLASSES, PROMPTS = ["ant", "bee", "cow"], ["a {}"]


def options(method="tecoa", **changes):
    values = {"eps": "4/255", "steps": 2, "step_size": "2/255", "epochs": 2, "batch_size": 20, "learning_rate": 1e-3}
    return RobustTower(method=method, validation_steps=2, **(values | changes))


def a_clip(source="train"):
    torch.manual_seed(0)
    clip = small_clip("resnet8", 32) if source == "train" else build_clip(hub.CONFIG)
    return clip, embed_prompts(clip, CLASSES, PROMPTS)


class Scores(nn.Linear):
    """An alignment whose embedding is one linear function of the pixels."""

    def embed(self, x):
        return x.flatten(1) @ self.weight.T

    def forward(self, x):
        return F.normalize(self.embed(x), dim=1)


def test_fare_attacks_what_moves_the_embedding_furthest():
    # Of a linear embedding with one number the furthest is known: eps times the sum of the weights' sizes.
    alignment, x, eps = Scores(12, 1), 0.3 + 0.4 * torch.rand(8, 3, 2, 2), 0.05
    loss_of = robust_tower.tower_loss(alignment, 1.0, copy.deepcopy(alignment).embed, x, None, "fare")
    assert loss_of(x).item() == 0
    attacked = perturb(loss_of, x, eps, torch.Generator().manual_seed(0), eps, eps / 2, 8)
    furthest = eps * alignment.weight.abs().sum().item()
    assert loss_of(attacked).item() == pytest.approx(furthest**2, rel=1e-4)


def test_tecoa_is_the_cross_entropy_of_scaled_cosines():
    alignment, x, y = Scores(12, 3), torch.rand(8, 3, 2, 2), torch.randint(0, 3, (8,))
    loss = robust_tower.tower_loss(alignment, 7.0, None, x, y, "tecoa")(x)
    cosines = F.normalize(x.flatten(1) @ alignment.weight.T, dim=1)
    assert loss.item() == pytest.approx(-(7 * cosines).log_softmax(1)[torch.arange(8), y].mean().item(), rel=1e-5)


@pytest.mark.parametrize("method", ["tecoa", "fare", "noise"])
def test_training_lowers_what_an_attack_gains(method):
    clip, text = a_clip()
    before = copy.deepcopy(clip.model.state_dict())
    history = robust_tower.harden(
        clip, options(method, epochs=6, learning_rate=3e-3), data(), data(30, 1), text, 0, None
    )
    assert history.loss.iloc[-1] < history.loss.iloc[0]
    criterion = history["noisy_accuracy" if method == "noise" else "pgd_accuracy"]
    assert criterion[history.chosen].item() == criterion.max()
    moved = {k for k, v in clip.model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert all(k.startswith("visual.") for k in moved), "the text side stays"
    assert not clip.model.training
    if method == "tecoa":
        assert history.pgd_accuracy.max() > 0.6, "a third are right by chance"


@pytest.mark.parametrize("method", ["tecoa", "fare"])
def test_a_killed_training_ends_with_the_same_tower(tmp_path, method):
    def train(resume):
        clip, text = a_clip()
        params = options(method, augment=True, warmup_epochs=1)
        return clip.model, robust_tower.harden(clip, params, data(), data(30, 1), text, 0, resume)

    same_bytes_after_death(tmp_path, robust_tower, "train_epoch", 1, train)


TRAINED = {"tower": "resnet8", "epochs": 1, "batch_size": 20, "learning_rate": 1e-3}
FILES = {"config": "clip.json", "weights": "clip.safetensors"}


@pytest.mark.parametrize(("source", "values"), [("train", TRAINED), ("file", FILES)])
def test_the_robust_tower_is_the_one_that_is_loaded(project_root, source, values):
    clip, text = a_clip(source)
    save_tensors(project_root / "clip.safetensors", clip.model.state_dict())
    write_json(project_root / "clip.json", hub.CONFIG)
    robust = options(epochs=1).model_dump()
    params = TypeAdapter(Clips).validate_python({"source": source, "prompts": PROMPTS, "robust": robust, **values})
    robust_tower.harden(clip, params.robust, data(), data(30, 1), text, 0, None)
    save_alignment(clip, params, text, paths.artifacts("alignment"))
    x = data(5).pixels
    scores = F.normalize(clip.model.visual(2 * (2 * x - 1)), dim=1) @ text.T
    assert torch.allclose(load_alignment()(x), scores, atol=1e-5)


def test_without_a_section_or_images_nothing_is_trained():
    clip, text = a_clip()
    before = copy.deepcopy(clip.model.state_dict())
    assert robust_tower.harden(clip, None, data(), data(30, 1), text, 0, None).empty
    assert all(torch.equal(v, before[k]) for k, v in clip.model.state_dict().items())
    with pytest.raises(UserError, match=r"alignment.robust trains an image tower, .* but dataset.validation is 0;"):
        robust_tower.harden(clip, options(), data(), data()[:0], text, 0, None)
