"""What makes attacks fast may not change what they find: folded batch norms, batches that fit into memory."""

import gc

import open_clip
import pytest
import torch
import torchvision
from torch import nn

from multishield.attacks import gradient_model as mover
from multishield.attacks.gradient_model import BATCH_SIZE, affordable, bytes_per_image, folded
from multishield.attacks.joint import joint
from multishield.attacks.threat_model import Ball
from multishield.errors import UserError
from multishield.forward import freeze
from multishield.images import Split
from multishield.shield import MultiShield
from paper.models.cifar_resnet import CifarResNet
from paper.models.classifier import Classifier
from paper.params import Baseline
from paper.stages.baseline import run_baseline

CPU = torch.device("cpu")


def warmed(network: nn.Module) -> nn.Module:
    """Batch norms with statistics and weights that are not those of their first day."""
    generator = torch.Generator().manual_seed(0)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        for t in (norm.running_var, norm.weight.data):
            t.copy_(0.5 + torch.rand(t.shape, generator=generator))
        for t in (norm.running_mean, norm.bias.data):
            t.copy_(torch.rand(t.shape, generator=generator) - 0.5)
    return freeze(network)


def norms(call) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in getattr(call, "__self__", call).modules())


def clip_tower() -> nn.Module:
    vision = {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32}
    text = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    return open_clip.CLIP(16, vision, text).visual


def transformer(outputs: int) -> nn.Module:
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1}
    text = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    return open_clip.CLIP(outputs, vision, text).visual


@pytest.mark.parametrize(
    "network",
    [lambda: CifarResNet(20, 10), lambda: torchvision.models.resnet18(num_classes=7), clip_tower],
    ids=["cifar resnet", "torchvision resnet", "open_clip tower"],
)
def test_folding_keeps_the_function_and_its_gradient(network):
    torch.manual_seed(0)
    model, x = warmed(network()), torch.rand(4, 3, 32, 32)
    twin = folded(model, x)
    assert norms(model) > 0, "the model itself is left as it was"
    assert norms(twin) == 0
    results = []
    for f in (model, twin):
        leaf = x.clone().requires_grad_()
        out = f(leaf)
        results.append((out.detach(), torch.autograd.grad(out.square().sum(), leaf)[0]))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max())


def test_both_models_of_a_shield_are_folded_and_its_scores_are_returned():
    torch.manual_seed(0)
    parts = [Classifier(warmed(CifarResNet(8, 5)), [0.5] * 3, [0.25] * 3) for _ in range(2)]
    shield = MultiShield(*parts, 0.01).eval()
    x = torch.rand(3, 3, 16, 16)
    twin = folded(shield.scores, x)
    assert norms(twin) == 0
    for ours, theirs in zip(twin(x), shield.scores(x), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


class UsedTwice(nn.Module):
    """The convolution's output goes into the batch norm and around it: folding would change the function."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.convolution(x)
        return (y + self.norm(y)).mean((2, 3))


class Changed(UsedTwice):
    """The output is changed in place before the batch norm sees it."""

    def forward(self, x):
        return self.norm(self.convolution(x).relu_()).mean((2, 3))


@pytest.mark.parametrize("network", [UsedTwice, Changed])
def test_what_cannot_be_folded_is_left_alone(network):
    torch.manual_seed(0)
    model, x = warmed(network()), torch.rand(4, 3, 8, 8)
    assert torch.equal(folded(model, x)(x), model(x))
    assert norms(folded(model, x)) == 1


def test_other_callables_and_models_in_training_are_returned():
    x = torch.rand(2, 3, 8, 8)
    training = CifarResNet(8, 5)
    assert folded(training, x) is training
    assert folded(torch.sin, x) is torch.sin


def test_the_twin_never_decides():
    """Whatever the twin says, stored success is the shield's own verdict on the stored image."""
    torch.manual_seed(1)
    shield = MultiShield(warmed(CifarResNet(8, 5)), warmed(CifarResNet(8, 5)), 0.001).eval()
    x = torch.rand(20, 3, 16, 16)
    y = shield.classifier(x).argmax(1)
    result = joint(shield, x, y, eps=8 / 255, seed=0, ids=torch.arange(20), steps=10)
    decision = shield(result.images).argmax(1)
    assert torch.equal((decision != y) & (decision != 5), result.success)
    part = joint(shield, x[:3], y[:3], eps=8 / 255, seed=0, ids=torch.arange(3), steps=10, batch_size=2)
    assert torch.equal(part.images, result.images[:3])


def test_an_attack_shares_the_weights_and_leaves_nothing_behind():
    torch.manual_seed(1)
    shield = MultiShield(warmed(CifarResNet(8, 5)), freeze(transformer(5)), 0.001).eval()
    twin, x = folded(shield.scores, torch.rand(4, 3, 32, 32)), torch.rand(3, 3, 32, 32)
    assert twin.__self__.alignment.proj is shield.alignment.proj, "no second copy of a CLIP"
    del twin

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    before = tensors()
    joint(shield, x, torch.tensor([0, 1, 2]), eps=8 / 255, seed=0, ids=torch.arange(3), steps=2)
    assert tensors() == before
    assert {p.dtype for p in shield.parameters()} == {torch.float32}


def test_memory_per_image_is_counted():
    x = torch.rand(16, 3, 8, 8)
    assert bytes_per_image(lambda t: t * t, x) == 3 * 8 * 8 * 4, "the input, kept once though it is used twice"
    linear = nn.Linear(192, 1000)
    # The weight is kept too, but it does not grow with the batch.
    assert bytes_per_image(nn.Sequential(nn.Flatten(), linear), x) <= 2 * 192 * 4


@pytest.mark.parametrize(("free", "slots"), [(10**12, BATCH_SIZE["cpu"]), (64 * 4 * 768 + 1, 64), (0, 16)])
def test_the_batch_is_as_large_as_memory_allows(monkeypatch, free, slots):
    monkeypatch.setattr(mover, "free_memory", lambda where: free)
    assert affordable(lambda t: t * t, torch.rand(16, 3, 8, 8), CPU) == slots


class Full(nn.Linear):
    def forward(self, x):
        raise torch.OutOfMemoryError("too large")


def test_a_baseline_that_does_not_fit_names_its_batch_size(tmp_path, monkeypatch):
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    data = Split(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), torch.arange(2))
    with pytest.raises(UserError, match=r"baseline.batch_size is 2, .* with net; lower it"):
        run_baseline("net", Full(1, 1), data, Baseline(attacks=["apgd-ce"], batch_size=2), Ball(8 / 255), 0)
