"""Training: its losses against formulas, a killed run against an undisturbed one, and classifiers that are refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from killing import data, same_bytes_after_death
from multishield.errors import UserError
from multishield.forward import forward
from paper.models.classifier import Classifier
from paper.params.sections import ClipTrained, Trained
from paper.training import classifier, clip, epochs
from small import Linear


def options(**changes) -> Trained:
    values = {"source": "train", "architecture": "resnet8", "method": "fgsm", "mean": [0.5] * 3, "std": [0.25] * 3}
    values |= {"epochs": 3, "batch_size": 20, "learning_rate": 0.05, "weight_decay": 0.0, "augment": True}
    values |= {"eps": "8/255", "warmup_epochs": 1, "steps": 3, "step_size": "2/255", "validation_steps": 2}
    return Trained(**(values | changes))


@pytest.mark.parametrize("method", ["fgsm", "pgd", "trades"])
def test_adversarial_losses_on_a_linear_model(method):
    # The loss is at least the clean one, and at most the worst case of the ball: with two classes this is known.
    model = Linear(2, 12)
    x, y = 0.3 + 0.4 * torch.rand(8, 3, 2, 2), torch.randint(0, 2, (8,))
    params = options(method=method, beta=0.0, step_size="10/255")
    loss = classifier.batch_loss(model, params, x, y, params.eps, torch.Generator().manual_seed(0))
    z = model(x)
    clean = F.cross_entropy(z, y)
    if method == "trades":  # with beta 0 nothing but the clean loss is left
        assert loss.item() == pytest.approx(clean.item())
        return
    margin = (z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None]))[:, 0]
    worst = F.softplus(-(margin - params.eps * (model.weight[0] - model.weight[1]).abs().sum())).mean()
    assert clean < loss <= worst + 1e-5
    assert loss.item() == pytest.approx(worst.item(), rel=0.05)


def test_trades_adds_the_robust_term():
    model, x, y = Linear(3, 12), torch.rand(8, 3, 2, 2), torch.zeros(8, dtype=torch.long)

    def loss(beta: float) -> float:
        params = options(method="trades", beta=beta)
        return classifier.batch_loss(model, params, x, y, 8 / 255, torch.Generator().manual_seed(0)).item()

    assert loss(0.0) < loss(1.0) < loss(2.0)
    assert loss(2.0) - loss(1.0) == pytest.approx(loss(1.0) - loss(0.0), rel=1e-4)


def test_noise_of_the_wanted_deviation_grows_with_the_radius():
    model, x, y, params = Linear(2, 12), torch.rand(400, 3, 2, 2), torch.zeros(400).long(), options(method="noise")
    noise = epochs.noisy(x, 0.5 * params.sigma, torch.Generator().manual_seed(0)) - x
    assert noise.std().item() == pytest.approx(0.05, rel=0.05)
    loss = classifier.batch_loss(model, params, x, y, 0.5 * params.eps, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(F.cross_entropy(model(x + noise), y).item(), rel=1e-5)


@pytest.mark.parametrize("method", ["standard", "fgsm", "pgd", "trades", "noise"])
def test_every_method_trains_and_chooses_its_best_epoch(project_root, method):
    model, history = classifier.train_or_load("net", options(method=method), data(), data(30, 1), 3, 0, None)
    criterion = {"standard": "clean_accuracy", "noise": "noisy_accuracy"}.get(method, "pgd_accuracy")
    assert history[history.chosen][criterion].item() == history[criterion].max()
    assert len(history) == 3
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("finished", [0, 2])
def test_a_killed_training_ends_with_the_same_weights(tmp_path, finished):
    def train(resume):
        return classifier.train_or_load("net", options(), data(), data(30, 1), 3, 0, resume)

    same_bytes_after_death(tmp_path, classifier, "train_epoch", finished, train)


def test_a_killed_clip_training_ends_with_the_same_weights(tmp_path):
    values = {"tower": "resnet8", "epochs": 2, "batch_size": 20, "learning_rate": 1e-3}
    params, classes = ClipTrained(source="train", prompts=["a {}"], **values), ["ant", "bee", "cow"]
    captions = [f"a {classes[k]}" for k in data().labels]

    def train(resume):
        made, history = clip.train_or_load(params, data(), captions, data(30, 1), classes, 0, resume)
        return made.model, history

    same_bytes_after_death(tmp_path, clip, "_one_epoch", 1, train)


def test_augmentation_moves_but_does_not_invent():
    x = torch.rand(50, 3, 32, 32)
    moved = epochs.augment(x, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape
    assert (moved.mean((1, 2, 3)) <= x.mean((1, 2, 3)) + 0.05).all()
    assert set(moved[0].flatten().tolist()) <= {0.0, *x[0].flatten().tolist()}
    assert not torch.equal(moved, x)


def test_a_training_that_diverges_is_an_error(project_root):
    params = options(learning_rate=1000.0, method="standard", epochs=20)
    with pytest.raises(UserError, match=r"the training has diverged|not finite"):
        classifier.train_or_load("mine", params, data(), data(30, 1), 3, 0, None)


@pytest.mark.parametrize(("train", "validation", "key"), [(0, 12, "dataset.train"), (12, 0, "dataset.validation")])
def test_training_needs_images(train, validation, key):
    with pytest.raises(UserError, match=f"training.net.source is 'train', which needs images, but {key} is 0"):
        classifier.train_or_load("net", options(), data(train), data(validation), 3, 0, None)


def usable(network: nn.Module) -> nn.Module:
    model = Classifier(network, [0.5] * 3, [0.25] * 3).eval().requires_grad_(False)
    classifier.usable(model, 5, 8, "training.mine")
    return model


UNUSABLE = {
    "a dict": (lambda z: {"logits": z}, "'dict' object has no attribute 'shape'"),
    "a tuple": (lambda z: (z, z), "'tuple' object has no attribute 'shape'"),
    "other classes": (lambda z: z[:, :4], r"it returns \(6, 4\); it must return differentiable .* 5 classes"),
    "no gradient": (lambda z: z.detach(), "element 0 of tensors does not require grad"),
    "nan": (lambda z: z / 0 * 0, "not finite"),
    "dropout": (lambda z: F.dropout(z, 0.5), "training.mine answers differently"),
}


@pytest.mark.parametrize(("then", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_classifier_that_cannot_be_evaluated_is_one_sentence(then, words):
    with pytest.raises(UserError, match=words) as caught:
        usable(Linear(5, 192, then=then))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"training.mine cannot be used on RGB images \(6, 3, 8, 8\).*: mat1 and mat2"):
        usable(Linear(5, 64))


def test_unusual_but_legal_models_work():
    frozen = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()))
    for network in (frozen, nn.Sequential(nn.Flatten(), nn.Linear(192, 5).half())):
        assert forward(usable(network), torch.rand(4, 3, 8, 8)).dtype == torch.float32
