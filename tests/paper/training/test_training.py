"""Training: its losses against formulas, and a killed run against an undisturbed one."""

import pytest
import torch
from torch.nn import functional as F

from killing import Killed, data, kill_after
from multishield.errors import UserError
from paper.params import ClipTrained, Trained
from paper.training import attacked, classifier, clip


def options(**changes):
    values = {
        "source": "train",
        "architecture": "resnet8",
        "method": "fgsm",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "epochs": 3,
        "batch_size": 20,
        "learning_rate": 0.05,
        "weight_decay": 0.0,
        "augment": True,
        "eps": "8/255",
        "warmup_epochs": 1,
        "steps": 3,
        "step_size": "2/255",
        "validation_steps": 2,
    }
    return Trained(**(values | changes))


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 12))

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


@pytest.mark.parametrize("method", ["fgsm", "pgd", "trades"])
def test_adversarial_losses_on_a_linear_model(method):
    # The attack only helps: the loss is at least the clean one, and no more than the worst case of the ball, which for
    # two classes of a linear model is known.
    model = Linear()
    model.weight.data[2] = -1000
    x, y = 0.3 + 0.4 * torch.rand(8, 3, 2, 2), torch.randint(0, 2, (8,))
    params = options(method=method, beta=0.0, step_size="10/255")
    loss = classifier.batch_loss(model, x, y, params, params.eps, torch.Generator().manual_seed(0))
    clean = F.cross_entropy(model(x), y)
    if method == "trades":  # with beta 0 nothing but the clean loss is left
        assert loss.item() == pytest.approx(clean.item())
        return
    z = model(x)
    margin = (z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None]))[:, 0]
    worst = F.softplus(-(margin - params.eps * (model.weight[0] - model.weight[1]).abs().sum())).mean()
    assert clean < loss <= worst + 1e-5
    assert loss.item() == pytest.approx(worst.item(), rel=0.05)


def test_trades_adds_the_robust_term():
    model, x, y = Linear(), torch.rand(8, 3, 2, 2), torch.zeros(8, dtype=torch.long)
    losses = [
        classifier.batch_loss(
            model, x, y, options(method="trades", beta=b), 8 / 255, torch.Generator().manual_seed(0)
        ).item()
        for b in (0.0, 1.0, 2.0)
    ]
    assert losses[0] < losses[1] < losses[2]
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-4)


@pytest.mark.parametrize("method", ["standard", "fgsm", "pgd", "trades"])
def test_every_method_trains_and_chooses_its_best_epoch(project_root, method):
    model, history = classifier.train("net", options(method=method), data(), data(30, 1), 3, seed=0)
    criterion = "clean_accuracy" if method == "standard" else "pgd_accuracy"
    assert history[history.chosen][criterion].item() == history[criterion].max()
    assert len(history) == 3
    assert not model.training


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_a_killed_training_ends_with_the_same_weights(project_root, monkeypatch, epochs):
    arguments = ("net", options(), data(), data(30, 1), 3)
    undisturbed, history = classifier.train(*arguments, seed=0)
    restore = kill_after(monkeypatch, classifier, epochs)
    with pytest.raises(Killed):
        classifier.train(*arguments, seed=0)
    restore()
    resumed, resumed_history = classifier.train(*arguments, seed=0)
    assert all(
        torch.equal(a, b) for a, b in zip(undisturbed.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    assert resumed_history.equals(history)
    assert not list((project_root / ".multishield" / "resume").iterdir()), "nothing is left behind"


def test_a_killed_clip_training_ends_with_the_same_weights(project_root, monkeypatch):
    params = ClipTrained(
        source="train", prompts=["a {}"], tower="test_resnet", epochs=2, batch_size=20, learning_rate=1e-3
    )
    classes = ["ant", "bee", "cow"]
    captions = [f"a {classes[k]}" for k in data().labels]
    arguments = (params, data(), captions, data(30, 1), classes)
    undisturbed, _, history = clip.train_clip(*arguments, seed=0)
    restore = kill_after(monkeypatch, clip, 1)
    with pytest.raises(Killed):
        clip.train_clip(*arguments, seed=0)
    restore()
    resumed, _, resumed_history = clip.train_clip(*arguments, seed=0)
    states = (undisturbed.model.state_dict(), resumed.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))
    assert resumed_history.equals(history)


def test_augmentation_moves_but_does_not_invent():
    x = torch.rand(50, 3, 32, 32)
    moved = attacked.augment(x, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape
    assert (moved.mean((1, 2, 3)) <= x.mean((1, 2, 3)) + 0.05).all()
    assert set(moved[0].flatten().tolist()) <= {0.0, *x[0].flatten().tolist()}
    assert not torch.equal(moved, x)


def test_a_training_that_diverges_is_an_error(project_root):
    with pytest.raises(UserError, match=r"the training has diverged|not finite"):
        classifier.train(
            "mine", options(learning_rate=1000.0, method="standard", epochs=20), data(), data(30, 1), 3, seed=0
        )
