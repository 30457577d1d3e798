"""`evaluate` against the exact worst case of two small ReLU networks, found by mixed-integer programming."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp

from multishield import evaluate
from multishield.evaluation import DEFAULTS
from multishield.shield import MultiShield

PIXELS, HIDDEN, K, TOLERANCE, N = 12, 8, 3, 0.02, 80


class Small(torch.nn.Module):
    """12 pixels to 8 ReLU units to 3 scores."""

    def __init__(self, generator):
        super().__init__()
        self.first, self.second = torch.nn.Linear(PIXELS, HIDDEN), torch.nn.Linear(HIDDEN, K)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.6, generator=generator)

    def forward(self, x):
        return self.second((self.first(x.flatten(1) - 0.5)).relu())


@dataclass
class Programme:
    """max s over [x, units of all networks, their on/off, s]; rows are `low <= A v`."""

    networks: list
    low: np.ndarray  # of the pixels
    high: np.ndarray

    def __post_init__(self):
        self.units = HIDDEN * len(self.networks)
        self.size = PIXELS + 2 * self.units + 1
        self.rows, self.bounds = [], []
        self.lower, self.upper = np.full(self.size, -np.inf), np.full(self.size, np.inf)
        self.lower[:PIXELS], self.upper[:PIXELS] = self.low, self.high
        for number, network in enumerate(self.networks):
            self._relu(network, number)

    def _row(self, parts: dict[int, float], low: float) -> None:
        row = np.zeros(self.size)
        for i, value in parts.items():
            row[i] = value
        self.rows.append(row)
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
        rows, bounds = len(self.rows), len(self.bounds)
        for number, (network, slack) in enumerate(zip(self.networks, (0.0, TOLERANCE), strict=True)):
            weight, bias = (p.detach().double().numpy() for p in network.second.parameters())
            for other in set(range(K)) - {target}:
                lead = dict(enumerate(weight[target] - weight[other], PIXELS + number * HIDDEN))
                self._row(lead | {self.size - 1: -1}, bias[other] - bias[target] - slack)
        aim, whole = np.zeros(self.size), np.zeros(self.size)
        aim[-1], whole[PIXELS + self.units : -1] = -1, 1
        limits = LinearConstraint(np.stack(self.rows), self.bounds)
        found = milp(aim, integrality=whole, bounds=Bounds(self.lower, self.upper), constraints=limits)
        assert found.status == 0, found.message
        del self.rows[rows:], self.bounds[bounds:]
        return -found.fun


@pytest.mark.parametrize(("seed", "eps"), [pytest.param(0, 0.1, marks=pytest.mark.long), (1, 0.06)])
def test_what_can_be_broken_is_found_and_nothing_else_is_claimed(seed, eps):
    generator = torch.Generator().manual_seed(seed)
    networks = [Small(generator), Small(generator)]
    x = torch.rand(N, 3, 2, 2, generator=generator)
    y = networks[0](x).argmax(1)
    exact = []
    for image, label in zip(x.flatten(1).double().numpy(), y.tolist(), strict=True):
        programme = Programme(networks, np.clip(image - eps, 0, 1), np.clip(image + eps, 0, 1))
        exact.append(max(programme.best(target) for target in range(K) if target != label))
    exact = torch.tensor(exact)
    possible, sure = exact > 0, exact.abs() > 1e-5
    settings = DEFAULTS.model_copy(update={"sanity": DEFAULTS.sanity.model_copy(update={"images": 2})})
    result = evaluate(MultiShield(*networks, TOLERANCE), x, y, eps, attacks=["parts", "joint"], settings=settings)
    print(f"{int(possible.sum())} of {N} can be broken; joint breaks {int(result.attacked['joint'].success.sum())}")
    assert N // 10 < possible.sum() < N - N // 10, "both cases occur"
    for name in ("joint", "adaptive"):
        found = result.attacked[name].success
        assert not (found & ~possible & sure).any(), "nothing is claimed that cannot be"
        assert (found & possible).sum() >= 0.99 * (possible & sure).sum()
