"""What may be counted of a model's answers: finite, and of the image alone. What may stand in a pipeline at all."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from multishield.answers import ask_twice
from multishield.attacks.pgd import pgd
from multishield.errors import UserError
from multishield.forward import forward
from multishield.shield import MultiShield
from multishield.verdicts import decide
from paper.models.cifar_resnet import build_network, load_exactly
from paper.models.classifier import Classifier
from paper.training.classifier import usable

X = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Linear(nn.Module):
    """A linear classifier of 5 classes, with something done to its logits."""

    def __init__(self, then=lambda z: z, channels=3):
        super().__init__()
        weight = torch.randn(5, channels * 64, generator=torch.Generator().manual_seed(0))
        self.weight, self.then = nn.Parameter(weight), then

    def forward(self, x):
        return self.then((x - 0.5).flatten(1) @ self.weight.T)


def test_a_sound_model_answers_twice_the_same():
    (z,), change = ask_twice(Linear(), X)
    torch.testing.assert_close(z, Linear()(X).detach())
    assert change.max() <= 1e-6


RANDOM = {
    "noise": lambda z: z + 0.1 * torch.randn_like(z),
    "dropout": lambda z: F.dropout(z, 0.1),
    "the batch": lambda z: z - z.mean(0),
    "the neighbour": lambda z: z + 0.1 * z.roll(1, 0),
}


@pytest.mark.parametrize("then", RANDOM.values(), ids=RANDOM)
def test_answers_that_change_are_an_error_that_names_the_image(then):
    with pytest.raises(
        UserError, match=r"the classifier answers differently when asked again: the scores of image n\d+"
    ):
        ask_twice(Linear(then), X, names=[f"n{i}" for i in range(20)])
    with pytest.raises(UserError, match="CLIP answers differently"):
        decide(MultiShield(Linear(), Linear(then)), X)


def test_batch_norm_in_training_mode_is_an_error():
    with pytest.raises(UserError, match="answers differently"):
        ask_twice(nn.Sequential(nn.BatchNorm2d(3), Linear()), X)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_never_counted(value):
    def poison(z):
        return z.masked_fill(torch.arange(len(z)).view(-1, 1) == 3, value)

    with pytest.raises(UserError, match=r"the classifier gives image 3 of a batch of 20 the scores .* not finite"):
        decide(Linear(poison), X)
    with pytest.raises(UserError, match="CLIP gives image 3 of a batch of 20"):
        decide(MultiShield(Linear(), Linear(poison)), X)
    with pytest.raises(UserError, match="not finite"):
        pgd(Linear(poison), X, torch.zeros(20, dtype=torch.long), eps=0.1, step_size=0.1, seed=0, ids=torch.arange(20))


def test_a_shield_is_in_evaluation_mode_and_of_one_number_of_classes():
    classifier = nn.Sequential(nn.BatchNorm2d(3), Linear())
    shield = MultiShield(classifier, Linear())
    before = classifier[0].running_mean.clone()
    shield(X)
    assert torch.equal(classifier[0].running_mean, before), "deciding is not learning"
    with pytest.raises(ValueError, match=r"\(20, 2\), CLIP's \(20, 5\)"):
        MultiShield(Linear(lambda z: z[:, :2]), Linear())(X)


def wrapped(network):
    return Classifier(network, [0.5] * 3, [0.25] * 3).eval().requires_grad_(False)


UNUSABLE = {
    "a dict": (lambda: Linear(lambda z: {"logits": z}), "returns dict for 6 images"),
    "a tuple": (lambda: Linear(lambda z: (z, z)), "returns tuple for 6 images"),
    "other classes": (lambda: Linear(lambda z: z[:, :4]), r"returns \(6, 4\) for 6 images, but the data set has 5"),
    "one channel": (lambda: Linear(channels=1), "fails with: mat1 and mat2 shapes cannot be multiplied"),
    "no gradient": (lambda: Linear(lambda z: z.detach()), "fails with: element 0 of tensors does not require grad"),
    "nan": (lambda: Linear(lambda z: z / 0 * 0), "not finite"),
    "dropout": (lambda: Linear(lambda z: F.dropout(z, 0.5)), "training.mine answers differently"),
}


@pytest.mark.parametrize(("network", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_cannot_be_evaluated_is_one_sentence(network, words):
    with pytest.raises(UserError, match=words):
        usable(wrapped(network()), 5, 8, "training.mine")


def test_unusual_but_legal_models_work():
    frozen = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()))
    half = nn.Sequential(nn.Flatten(), nn.Linear(192, 5).half())
    for network in (frozen, half):
        model = usable(wrapped(network), 5, 8, "training.mine")
        assert forward(model, X).dtype == torch.float32
        found = pgd(model, X, torch.zeros(20, dtype=torch.long), eps=0.1, step_size=0.1, seed=0, ids=torch.arange(20))
        assert len(found.images) == 20


def test_weights_that_are_not_finite_are_refused():
    network = build_network("resnet8", 5)
    weights = dict(network.state_dict())
    weights["linear.bias"] = torch.tensor([0, 0, float("nan"), 0, 0])
    with pytest.raises(UserError, match=r"w.safetensors: linear.bias holds values that are not finite"):
        load_exactly(network, weights, "w.safetensors")


def test_weights_of_a_data_parallel_model_are_its_model_s():
    network, other = build_network("resnet8", 5), build_network("resnet8", 5)
    load_exactly(other, {f"module.{k}": v for k, v in network.state_dict().items()}, "w")
    assert torch.equal(other.linear.weight, network.linear.weight)
