"""The ball, the rules of success, and random numbers by name."""

import pytest
import torch

from multishield import Ball
from multishield.attacks.losses import evasion_margin
from multishield.attacks.random_streams import keys, uniform
from multishield.attacks.threat_model import evaded, evades
from small import linear_shield


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_ball(norm):
    ball, x = Ball(0.3, norm), torch.rand(50, 3, 4, 4)
    order = torch.inf if norm == "Linf" else 2
    start = ball.random(x, keys(0, "t", torch.arange(50)))
    distance = torch.linalg.vector_norm(start - x, order, dim=(1, 2, 3))
    assert (distance <= 0.3 + 1e-6).all()
    assert distance.min() > 0
    assert torch.allclose(ball.distance(start, x), distance)
    far = ball.project(x + torch.randn_like(x), x)
    assert (torch.linalg.vector_norm(far - x, order, dim=(1, 2, 3)) <= 0.3 + 1e-6).all()
    assert torch.equal(far, far.clamp(0, 1))
    assert torch.allclose(ball.project(x, x), x)
    direction = ball.ascent(torch.randn_like(x))
    length = direction.abs().amax((1, 2, 3)) if norm == "Linf" else direction.flatten(1).norm(dim=1)
    assert torch.allclose(length, torch.ones(50), atol=1e-5)


def test_other_norms_and_images_outside_the_ball_are_errors():
    with pytest.raises(ValueError, match="norm is 'L1'; accepted are 'Linf' and 'L2'"):
        Ball(0.3, "L1")
    x = torch.full((2, 3, 4, 4), 0.5)
    for outside in (x + 0.31, x * torch.nan):
        with pytest.raises(RuntimeError, match=r"of joint, the farthest, is .* away \(eps is 0\.300000\)"):
            Ball(0.3).checked_distance(outside, x, "joint")
    assert torch.allclose(Ball(0.3).checked_distance(x + 0.3, x, "joint"), torch.tensor(0.3))


def test_success_by_outputs_by_scores_and_by_the_margin_is_one():
    shield, x, y = linear_shield(6, tolerance=0.02), torch.rand(400, 3, 4, 4), torch.randint(6, (400,))
    wins, scores = evaded(shield(x), y), shield.scores(x)
    assert 0.02 < wins.float().mean() < 0.98
    assert torch.equal(evades(shield)(scores, y), wins)
    assert torch.equal(evasion_margin(scores, y, shield) >= 0, wins)
    # Of 37 classes, 10 is a class and 37 is "rejected".
    assert evaded(torch.eye(38)[[10, 37]], torch.tensor([0, 0])).tolist() == [True, False]


def splitmix(z):
    """splitmix64's finaliser in Python's integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_random_numbers_are_named_uniform_and_portable():
    streams = keys(0, "a", torch.tensor([7, 8, 9]))
    u = uniform(streams, 20_000)
    assert torch.equal(u[1:2], uniform(keys(0, "a", torch.tensor([8])), 20_000))
    assert not torch.equal(u[1:2], uniform(keys(1, "a", torch.tensor([8])), 20_000))
    assert not torch.equal(u[1:2], uniform(keys(0, "b", torch.tensor([8])), 20_000))
    assert u.min() >= 0
    assert u.max() < 1
    assert torch.allclose(u.mean(1), torch.full((3,), 0.5), atol=0.01)
    assert torch.allclose(u.var(1), torch.full((3,), 1 / 12), atol=0.003)
    assert torch.corrcoef(u).fill_diagonal_(0).abs().max() < 0.03
    # The same on every machine: integers and powers of two only.
    portable = [(splitmix((1 + i * 0x9E3779B97F4A7C15) % 2**64) >> 40) * 2.0**-24 for i in range(3)]
    assert uniform(torch.tensor([1]), 3)[0].tolist() == portable
