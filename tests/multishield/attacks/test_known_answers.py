"""Attacks against exact answers: linear programmes, and AutoAttack's own package on the same network."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from scipy.optimize import linprog

from conftest import ROOT
from multishield.attacks.apgd import apgd
from multishield.attacks.joint import joint
from multishield.attacks.square import square
from multishield.attacks.threat_model import fooled
from multishield.forward import outputs
from multishield.shield import MultiShield
from paper.data.folders import open_folder
from paper.data.prepare import read_split
from paper.models.classifier import read_classifier
from paper.params import read_yaml

EPS, TOLERANCE, K = 8 / 255, 0.01, 5


class Affine(torch.nn.Module):
    """Linear scores around grey."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, x):
        return (x.flatten(1) - 0.5) @ self.weight.T


def best_margin(x, y, z, c) -> float:
    """The exact answer for one image: the largest s such that some target t != y leads the logits by s, and the cosines
    by s - tau, at a point of the ball. Evasion is possible exactly where s > 0 (up to ties).

    One linear programme per target over x' and s: max s subject to (w_t - w_j) x' >= s, (v_t - v_j) x' + tau >= s.
    """
    low, high = np.clip(x - EPS, 0, 1), np.clip(x + EPS, 0, 1)
    best = -np.inf
    for t in set(range(K)) - {y}:
        others = [j for j in range(K) if j != t]
        rows = np.concatenate([z[others] - z[t], c[others] - c[t]])
        bound = np.concatenate([np.zeros(K - 1), np.full(K - 1, TOLERANCE)]) + rows.sum(1) * 0.5
        result = linprog(
            np.r_[np.zeros(len(x)), -1.0],
            A_ub=np.c_[rows, np.ones(len(rows))],
            b_ub=bound,
            bounds=[*zip(low, high, strict=True), (None, None)],
        )
        assert result.status == 0
        best = max(best, -result.fun)
    return best


@pytest.mark.parametrize("agreement", [0.3, 0.8])
def test_joint_finds_what_linear_programming_finds(agreement):
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(K, 48, generator=generator)
    v = agreement * w + (1 - agreement) * torch.randn(K, 48, generator=generator)
    shield = MultiShield(Affine(w), Affine(0.05 * v), TOLERANCE)
    x = 0.1 + 0.8 * torch.rand(250, 3, 4, 4, generator=generator)
    y = shield.classifier(x).argmax(1)
    exact = torch.tensor(
        [
            best_margin(xi.flatten().numpy().astype(float), int(yi), w.double().numpy(), 0.05 * v.double().numpy())
            for xi, yi in zip(x, y, strict=True)
        ]
    )
    possible, certain = exact > 1e-5, exact.abs() > 1e-5
    found = joint(shield, x, y, eps=EPS, seed=0, ids=torch.arange(250), targets=K - 1, steps=60)
    assert 25 < possible.sum() < 225, "both cases occur"
    assert not (found.success & ~possible & certain).any(), "nothing is claimed that cannot be"
    assert (found.success & possible).sum() >= 0.99 * possible.sum()


@pytest.fixture(scope="module")
def real_network():
    """A real ResNet-20 and the first 200 lossless CIFAR-10 test images that it gets right."""
    weights, folder = (Path(os.environ[v]) for v in ("MULTISHIELD_WEIGHTS", "MULTISHIELD_CIFAR10"))
    profile = read_yaml(ROOT / "profiles" / "cifar10-cpu.yaml")["training"]["resnet20"]
    file = weights / "cifar10_resnet20.safetensors"
    network = read_classifier(file, profile["architecture"], 10, profile["mean"], profile["std"])
    source = open_folder(folder, "test")
    data = read_split(source, torch.arange(len(source)), 32)
    right = (outputs(network, data.pixels).argmax(1) == data.labels).nonzero()[:200, 0]
    return network, data.pixels[right], data.labels[right]


TARGETS = 3  # of apgd-t: what the packages share, at a third of the time of all nine


def theirs(name, network, x, y, eps, seed, queries) -> int:
    """Images that AutoAttack's package leaves robust."""
    attack = AutoAttack(network, attacks=[name], version="custom", norm="Linf", eps=eps, seed=seed, device="cpu")
    attack.apgd.n_restarts = 1
    attack.apgd_targeted.n_target_classes, attack.square.n_queries = TARGETS, queries
    images, _ = attack.run_standard_evaluation(x, y, batch_size=100)
    return int((~fooled(network(images), y)).sum())


def ours(name, network, x, y, eps, seed, queries) -> int:
    """Images that this package's attack leaves robust."""
    options = {"eps": eps, "seed": seed, "ids": torch.arange(len(x))}
    if name == "square":
        result = square(network, x, y, queries=queries, **options)
    else:
        loss = {"apgd-ce": "ce", "apgd-t": "dlr-targeted"}[name]
        result = apgd(network, x, y, loss=loss, targets=TARGETS, **options)
    return int((~result.success).sum())


# Square is a random search: one seed and the next lie up to two points apart, in either package. So means are compared.
@pytest.mark.long
@pytest.mark.cifar10
@pytest.mark.parametrize(
    ("name", "eps", "seeds"), [("apgd-ce", 0.8 / 255, 1), ("apgd-t", 0.8 / 255, 1), ("square", 4 / 255, 3)]
)
def test_agreement_with_autoattacks_package(name, eps, seeds, real_network):
    """The same network, images and budget, at a radius where some images resist: robust accuracy within one point."""
    network, x, y = real_network
    robust = []
    for package in (theirs, ours):
        left = [package(name, network, x, y, eps, seed, queries=150) for seed in range(seeds)]
        print(f"{name}: {package.__name__} {left} of {len(x)} robust")
        robust.append(sum(left) / seeds)
    assert 0.1 < robust[0] / len(x) < 0.9, "some images are robust and some are not"
    assert abs(robust[1] - robust[0]) <= 0.01 * len(x)
