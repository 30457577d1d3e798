"""AutoAttack on the classifier alone: its batches, its seed, and this package's attacks beside it."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from pyautoattack import AutoAttack

from multishield import Ball, Images, StoredImages, UserError, apgd, square
from multishield.attacks.threat_model import fooled
from multishield.files import load_tensors
from multishield.forward import freeze, outputs
from paper.models.cifar_resnet import build_network, load_exactly
from paper.models.classifier import Classifier
from paper.stages.autoattack import autoattack
from paper.stages.baseline import Stage
from small import Convolutions, Linear, inside

EPS = 8 / 255


@pytest.fixture
def stage(tmp_path):
    """The stage on 17 images in batches of 5; `each` is how they are computed."""

    def made(classifier, each=map):
        x, made = inside(17, side=8), object.__new__(Stage)
        made.params = SimpleNamespace(seed=0, baseline=SimpleNamespace(attacks=["apgd-ce"], batch_size=5))
        made.classifier, made.item, made.ball, made.unaware = classifier, "net", Ball(EPS), StoredImages()
        made.data, made.folder = Images(x, torch.arange(17) % 5, torch.arange(17)), tmp_path
        made.resume, made.each = tmp_path / "resume", each
        return made

    return made


def test_batches_are_those_of_autoattack_in_any_order_and_a_killed_stage_continues(stage):
    def killed(work, batches):
        yield from [work(batch) for batch in batches[:2]]
        raise KeyboardInterrupt

    done = []

    def backwards(work, batches):
        done.extend(name for name, _ in batches)
        return [work(batch) for batch in reversed(batches)]

    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        stage(Convolutions(), killed).attack()
    torch.manual_seed(0)
    begun = stage(Convolutions(), backwards)
    begun.attack()
    attacked = begun.unaware[:]
    assert done == ["00000010", "00000015"], "finished batches are not done again"
    data = begun.data[5:10]
    batch = autoattack(begun.classifier, data.pixels, data.labels, ball=Ball(EPS), seed=0, attacks=("apgd-ce",))
    assert torch.equal(attacked.images[5:10], batch.images)
    rows = begun.records()
    assert rows.attack.tolist() == attacked.broken_by
    assert set(rows.scenario) == {"no_shield"}
    assert ((rows.attacked_decision != rows.label) == attacked.success.numpy()).all()


def test_a_batch_that_does_not_fit_names_the_key_to_lower(stage):
    class Full(Linear):
        def forward(self, x):
            raise torch.OutOfMemoryError("too large")

    with pytest.raises(UserError, match=r"baseline.batch_size is 5, .* memory of the device; lower it"):
        stage(Full(5, 192)).attack()


def test_autoattack_is_seeded_and_keeps_wrong_images():
    model, x = Linear(), inside(12)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4  # wrong before any attack
    first, second = (autoattack(model, x, y, ball=Ball(EPS), seed=3, attacks=("apgd-ce", "apgd-t")) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert first.broken_by == second.broken_by
    assert first.broken_by[0] == "clean"
    assert torch.equal(first.images[0], x[0])
    assert torch.equal(fooled(model(first.images), y), first.success)
    assert first.backwards[0] == 0
    assert first.backwards[~first.success].min() > 0
    with pytest.raises(UserError, match="apgd-t"):
        autoattack(Linear(3), x, y % 3, ball=Ball(EPS), seed=3, attacks=("apgd-t",))


TARGETS = 3  # of apgd-t: both packages aim at the same three, at a third of the time of all nine


def theirs(name, network, x, y, eps, seed):
    """Images that AutoAttack's package leaves robust."""
    attack = AutoAttack(network, attacks=[name], version="custom", norm="Linf", eps=eps, seed=seed, device="cpu")
    attack.apgd.n_restarts = 1
    attack.apgd_targeted.n_target_classes, attack.square.n_queries = TARGETS, 150
    images, _ = attack.run_standard_evaluation(x, y, batch_size=100)
    return int((~fooled(network(images), y)).sum())


def ours(name, network, x, y, eps, seed):
    """Images that this package's attack leaves robust."""
    options = {"ball": Ball(eps), "seed": seed, "ids": torch.arange(len(x))}
    losses = {"apgd-ce": "ce", "apgd-t": "dlr-targeted"}
    if name == "square":
        return int((~square(network, x, y, queries=150, **options).success).sum())
    return int((~apgd(network, x, y, loss=losses[name], targets=TARGETS, **options).success).sum())


# Square is a random search: one seed and the next lie up to two points apart, in either package. So means are compared.
@pytest.mark.long
@pytest.mark.cifar10
@pytest.mark.parametrize(("name", "eps", "seeds"), [("apgd-ce", 0.8, 1), ("apgd-t", 0.8, 1), ("square", 4, 3)])
def test_agreement_with_autoattacks_package(name, eps, seeds):
    """A ResNet-20, 200 CIFAR-10 images, a radius where some resist: robust accuracy within one point."""
    weights, folder = (Path(os.environ[v]) for v in ("MULTISHIELD_WEIGHTS", "MULTISHIELD_CIFAR10"))
    network = build_network("resnet20", 10)
    load_exactly(network, load_tensors(weights / "cifar10_resnet20.safetensors"), "the weights")
    network = freeze(Classifier(network, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    images = torchvision.datasets.ImageFolder(folder / "test", torchvision.transforms.PILToTensor())
    x, y = zip(*(images[i] for i in range(0, len(images), len(images) // 250)), strict=True)
    x, y = torch.stack(x).float() / 255, torch.tensor(y)
    right = (outputs(network, x).argmax(1) == y).nonzero()[:200, 0]
    robust = []
    for package in (theirs, ours):
        left = [package(name, network, x[right], y[right], eps / 255, seed) for seed in range(seeds)]
        print(f"{name}: {package.__name__} {left} of {len(right)} robust")
        robust.append(sum(left) / seeds)
    assert 0.1 < robust[0] / len(right) < 0.9, "some images are robust and some are not"
    assert abs(robust[1] - robust[0]) <= 0.01 * len(right)
