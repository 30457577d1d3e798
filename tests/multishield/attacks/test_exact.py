"""`joint` and `evaluate` against exact worst cases: linear models by linear programming, ReLU networks by mixed-integer
programming."""

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from torch import nn

from multishield import Ball, Budget, MultiShield, evaluate, joint
from multishield.budget import Components, Joint, Sanity
from small import Linear, inside

EPS, TOLERANCE = 8 / 255, 0.02


def best_margin(x: np.ndarray, y: int, models: list[np.ndarray]) -> float:
    """The largest s by which a target t != y leads the logits, and the cosines but for the tolerance, in the ball.

    One linear programme per target over x' and s: max s subject to (w_t - w_j) x' >= s, (v_t - v_j) x' + tau >= s.
    """
    bounds, best, classes = [*zip(x - EPS, x + EPS, strict=True), (None, None)], -np.inf, len(models[0])
    for t in set(range(classes)) - {y}:
        rows = np.concatenate([np.delete(w, t, 0) - w[t] for w in models])
        limits = np.repeat([0.0, TOLERANCE], classes - 1) + 0.5 * rows.sum(1)
        aim = np.r_[np.zeros(len(x)), -1.0]
        solved = linprog(aim, A_ub=np.c_[rows, np.ones(len(rows))], b_ub=limits, bounds=bounds)
        assert solved.status == 0
        best = max(best, -solved.fun)
    return best


@pytest.mark.parametrize("agreement", [0.3, 0.8])
def test_joint_breaks_what_linear_programming_breaks(agreement):
    shield, n = MultiShield(Linear(5, seed=3), Linear(5, seed=4), TOLERANCE), 120
    w, v = shield.classifier.weight, shield.alignment.weight
    v.copy_(0.05 * (agreement * w + (1 - agreement) * v))
    x, models = inside(n), [w.double().numpy(), v.double().numpy()]
    y, exact = shield.classifier(x).argmax(1), []
    for image, label in zip(x.flatten(1).double().numpy(), y.tolist(), strict=True):
        exact.append(best_margin(image, label, models))
    attacked = joint(shield, x, y, ball=Ball(EPS), seed=0, ids=torch.arange(n), targets=4, steps=60)
    agree(attacked.success, torch.tensor(exact))


def agree(success, exact):
    possible, sure = exact > 0, exact.abs() > 1e-5
    assert 0.1 < possible.float().mean() < 0.9, "both cases occur"
    assert not (success & ~possible & sure).any(), "nothing is claimed that cannot be"
    assert (success & possible).sum() >= 0.99 * (possible & sure).sum()


PIXELS, HIDDEN, CLASSES = 12, 8, 3


class Small(nn.Module):
    """12 pixels to 8 ReLU units to 3 scores."""

    def __init__(self, generator):
        super().__init__()
        self.first, self.second = nn.Linear(PIXELS, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.6, generator=generator)

    def forward(self, x):
        return self.second((self.first(x.flatten(1) - 0.5)).relu())


class Programme:
    """max s over [x, units of all networks, their on/off, s]; rows are `low <= A v`."""

    def __init__(self, networks: list, low: np.ndarray, high: np.ndarray):
        self.networks, self.low, self.high = networks, low, high
        self.units = HIDDEN * len(networks)
        self.size = PIXELS + 2 * self.units + 1
        self.rows, self.bounds = [], []
        self.lower, self.upper = np.full(self.size, -np.inf), np.full(self.size, np.inf)
        self.lower[:PIXELS], self.upper[:PIXELS] = low, high
        for number, network in enumerate(networks):
            self._relu(network, number)

    def _row(self, entries: dict[int, float], low: float) -> None:
        self.rows.append(np.zeros(self.size))
        self.rows[-1][list(entries)] = list(entries.values())
        self.bounds.append(low)

    def _relu(self, network, number: int) -> None:
        """h = max(0, w x + b), by h >= 0, h >= w x + b, h <= w x + b - l (1 - d), h <= u d, with l <= w x + b <= u."""
        weight, bias = (p.detach().double().numpy() for p in network.first.parameters())
        bias = bias - 0.5 * weight.sum(1)
        for i, (w, b) in enumerate(zip(weight, bias, strict=True)):
            h = PIXELS + number * HIDDEN + i
            d, pixels = h + self.units, dict(enumerate(w))
            least = np.where(w > 0, w * self.low, w * self.high).sum() + b
            most = np.where(w > 0, w * self.high, w * self.low).sum() + b
            self.lower[h], self.lower[d], self.upper[d] = 0, 0, 1
            self._row({h: 1} | {k: -v for k, v in pixels.items()}, b)
            self._row({h: -1, d: -max(-least, 0)} | pixels, -b - max(-least, 0))
            self._row({h: -1, d: max(most, 0)}, 0)

    def best(self, target: int) -> float:
        """The largest s by which the target leads in the logits, and, but for the tolerance, in CLIP's scores."""
        own = len(self.rows)
        for number, (network, slack) in enumerate(zip(self.networks, (0.0, TOLERANCE), strict=True)):
            weight, bias = (p.detach().double().numpy() for p in network.second.parameters())
            for other in set(range(CLASSES)) - {target}:
                lead = dict(enumerate(weight[target] - weight[other], PIXELS + number * HIDDEN))
                self._row(lead | {self.size - 1: -1}, bias[other] - bias[target] - slack)
        aim, whole = np.zeros(self.size), np.zeros(self.size)
        aim[-1], whole[PIXELS + self.units : -1] = -1, 1
        limits = LinearConstraint(np.stack(self.rows), self.bounds)
        solved = milp(aim, integrality=whole, bounds=Bounds(self.lower, self.upper), constraints=limits)
        assert solved.status == 0, solved.message
        del self.rows[own:], self.bounds[own:]
        return -solved.fun


@pytest.mark.parametrize(("seed", "eps", "n"), [pytest.param(0, 0.1, 80, marks=pytest.mark.long), (1, 0.06, 30)])
def test_evaluate_breaks_what_mixed_integer_programming_breaks(seed, eps, n):
    generator, exact = torch.Generator().manual_seed(seed), []
    networks = [Small(generator), Small(generator)]
    x = torch.rand(n, 3, 2, 2, generator=generator)
    y = networks[0](x).argmax(1)
    for image, label in zip(x.flatten(1).double().numpy(), y.tolist(), strict=True):
        programme = Programme(networks, np.clip(image - eps, 0, 1), np.clip(image + eps, 0, 1))
        exact.append(max(programme.best(target) for target in range(CLASSES) if target != label))
    budget = Budget(joint=Joint(2, 60), components=Components(2, 60), sanity=Sanity(1))
    result = evaluate(MultiShield(*networks, TOLERANCE), x, y, eps, attacks=["components", "joint"], budget=budget)
    for name in ("joint", "worst_case"):
        agree(result.attacked[name][:].success, torch.tensor(exact))
