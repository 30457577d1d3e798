"""Defences against known answers: each decides what its sentence says, and its margins are that decision."""

import inspect

import pytest
import torch
from torch import nn

from multishield import defences
from multishield.defences import (
    ConfidenceThreshold,
    ConsistentPrediction,
    FeatureSqueezing,
    RejectClass,
    SummedLogProbabilities,
    Unanimity,
    Undefended,
    calibrate,
    reduced_bits,
    smoothed,
)
from multishield.shield import MultiShield


class Table(nn.Module):
    """Scores of one image after the other, whatever the pixels are."""

    def __init__(self, *scores):
        super().__init__()
        self.rows = torch.tensor(scores)

    def forward(self, x):
        return self.rows[: len(x)]


REJECT = 3
LOGITS = [[4.0, 1.0, 0.0], [2.0, 1.9, 0.0], [0.0, 0.0, 3.0]]
COSINES = [[0.3, 0.2, 0.1], [0.2, 0.21, 0.1], [0.3, 0.2, 0.1]]
OTHER = [[1.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.2]]
KNOWN = {
    "alone": (lambda: Undefended(Table(*LOGITS)), [0, 0, 2]),
    "a margin": (lambda: ConfidenceThreshold(Table(*LOGITS), 0.5), [0, REJECT, 2]),
    # The second image has a largest probability of 0.487, the others of more than 0.9.
    "a probability": (lambda: ConfidenceThreshold(Table(*LOGITS), 0.5, of="probability"), [0, REJECT, 2]),
    "K+1 outputs": (lambda: RejectClass(Table([4.0, 1, 0, 2], [2.0, 1, 0, 3], [0.0, 0, 3, 3])), [0, REJECT, 2]),
    "the shield": (lambda: MultiShield(Table(*LOGITS), Table(*COSINES), 0.001), [0, REJECT, REJECT]),
    "the shield, tolerant": (lambda: MultiShield(Table(*LOGITS), Table(*COSINES), 0.02), [0, 0, REJECT]),
    "unanimity": (lambda: Unanimity([Table(*LOGITS), Table(*OTHER)]), [0, REJECT, 2]),
    "unanimity, by some lead": (lambda: Unanimity([Table(*LOGITS), Table(*OTHER)], [0.0, 0.5]), [0, REJECT, REJECT]),
    "unanimity of three": (lambda: Unanimity([Table(*LOGITS), Table(*OTHER), Table(*COSINES)]), [0, REJECT, REJECT]),
    # The sums lead by 3.0, 0.1 and 3.0 of logits, and by 10 times 0.1, -0.01 and -0.2 of cosines.
    "summed, equally sure": (lambda: _sum(10.0, 0.5), [0, REJECT, 2]),
    "summed, CLIP surer": (lambda: _sum(20.0, 0.0), [0, 1, 0]),
}


def _sum(scale, threshold):
    return SummedLogProbabilities(Table(*LOGITS), Table(*COSINES), scale, threshold)


@pytest.mark.parametrize(("build", "decisions"), KNOWN.values(), ids=KNOWN)
def test_decisions(build, decisions):
    defence, x = build(), torch.zeros(3, 3, 2, 2)
    assert defence(x).shape == (3, 4)
    assert defence(x).argmax(1).tolist() == decisions
    accepted = (defence.margins(defence.scores(x)) >= 0).all(1)
    assert [row.nonzero()[:, 0].tolist() for row in accepted] == [[] if d == REJECT else [d] for d in decisions]


def test_the_shields_margins_are_its_outputs():
    z, c = torch.randn(5000, 6), 0.1 * torch.randn(5000, 6)
    for tolerance in (0.0, 0.001, 0.05):
        shield = MultiShield(nn.Flatten(), nn.Flatten(), tolerance)
        same = Unanimity([nn.Flatten(), nn.Flatten()], [0.0, -tolerance])
        decision = shield.outputs((z, c)).argmax(1)
        assert 0.05 < (decision == 6).float().mean() < 0.95
        assert torch.equal(same.outputs((z, c)).argmax(1), decision)
        accepted = (shield.margins((z, c)) >= 0).all(1)
        assert torch.equal(accepted.any(1), decision < 6)
        assert torch.equal(accepted.float().argmax(1)[decision < 6], decision[decision < 6])


def test_squeezing_rejects_what_changes_when_it_is_squeezed():
    class Bright(nn.Module):  # class 1 from 0.53 on; 0.54 becomes 8/15 = 0.533, 0.52 does too
        def forward(self, x):
            level = x.mean((1, 2, 3)) - 0.53
            return torch.stack([-level, level], 1)

    x = torch.tensor([0.2, 0.52, 0.54, 0.9]).view(4, 1, 1, 1).expand(4, 3, 4, 4)
    assert FeatureSqueezing(Bright())(x).argmax(1).tolist() == [0, 2, 1, 1]


def test_consistency_rejects_what_a_small_step_changes():
    class Bright(nn.Module):
        def forward(self, x):
            level = 10 * (x.mean((1, 2, 3)) - 0.5)
            return torch.stack([-level, level], 1)

    x = torch.tensor([0.2, 0.47, 0.49, 0.51, 0.53, 0.999]).view(6, 1, 1, 1).expand(6, 3, 4, 4)
    defence = ConsistentPrediction(Bright(), radius=0.02)
    with torch.no_grad():
        assert defence(x).argmax(1).tolist() == [0, 0, 2, 2, 1, 1]
    neighbours = defence.models[1].before(x)
    assert torch.allclose(neighbours.mean((1, 2, 3)), torch.tensor([0.22, 0.49, 0.51, 0.49, 0.51, 0.979]))
    # A lead of 20 |level - 0.5| is asked for, of the neighbour too: 0.53's neighbour has 0.2, 0.2's has 5.6.
    strict = ConsistentPrediction(Bright(), radius=0.02, leads=(0.0, 0.3))
    assert strict(x).argmax(1).tolist() == [0, 2, 2, 2, 2, 1]
    moving = x.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(defence.models[1].before(moving).sum(), moving)[0], torch.ones_like(x))


def test_consistency_needs_no_third_pass_for_the_same_scores_and_gradients():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).requires_grad_(False)
    defence, x, passes = ConsistentPrediction(network, radius=0.05), torch.rand(5, 3, 4, 4), []
    network.register_forward_hook(lambda *_: passes.append(1))
    moving, found = x.clone().requires_grad_(), []
    for scores in (defence.scores, super(ConsistentPrediction, defence).scores):
        both = scores(moving)
        found.append([*both, *(torch.autograd.grad(s[:, 0].sum(), moving)[0] for s in both)])
        with torch.no_grad():
            assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(scores(x), both, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert len(passes) == 2 * (2 + 3)


def test_squeezers_and_their_gradients():
    x = torch.rand(2, 3, 5, 5, requires_grad=True)
    squeezed = reduced_bits(x, bits=2)
    assert set((3 * squeezed).round(decimals=4).flatten().tolist()) <= {0.0, 1.0, 2.0, 3.0}
    assert torch.equal(torch.autograd.grad(squeezed.sum(), x)[0], torch.ones_like(x))
    spike = torch.zeros(1, 3, 5, 5)
    spike[0, 1, 2, 2] = 1
    assert torch.equal(smoothed(spike), torch.zeros(1, 3, 5, 5))
    assert torch.equal(smoothed(torch.full((1, 3, 5, 5), 0.3)), torch.full((1, 3, 5, 5), 0.3))


LISTED = ("Undefended", "ConfidenceThreshold", "RejectClass", "Unanimity", "FeatureSqueezing", "ConsistentPrediction")


@pytest.mark.parametrize("name", LISTED)
def test_a_defence_is_short(name):
    assert len(inspect.getsource(getattr(defences, name)).splitlines()) < 25


def test_a_threshold_is_calibrated_to_a_wanted_rejection():
    logits = torch.tensor([[float(i), 0.0] for i in range(1, 101)]).view(100, 2, 1, 1)  # margins 1..100

    def build(threshold):
        return ConfidenceThreshold(nn.Flatten(), threshold)

    for wanted in (0.0, 0.05, 0.057, 0.5, 0.98):
        defence = calibrate(build, logits, wanted)
        rejected = (defence(logits).argmax(1) == 2).sum()
        assert rejected == int(100 * wanted)
        assert (build(defence.threshold + 1)(logits).argmax(1) == 2).sum() > 100 * wanted, "the largest that will do"
    with pytest.raises(ValueError, match=r"rejection is 1, low 0.0, high 1.0; accepted are 0 <= rejection < 1"):
        calibrate(build, logits, 1)
    with pytest.raises(ValueError, match=r"at the threshold 50, 49.0% are rejected, not 10.0%; lower `low`"):
        calibrate(build, logits, 0.1, low=50, high=60)


def test_bad_thresholds_and_leads():
    with pytest.raises(ValueError, match=r"of is 'entropy', threshold 1"):
        ConfidenceThreshold(nn.Flatten(), 1, of="entropy")
    with pytest.raises(ValueError, match=r"threshold nan"):
        ConfidenceThreshold(nn.Flatten(), float("nan"))
    with pytest.raises(ValueError, match="2 models and 1 leads; give one lead per model"):
        Unanimity([nn.Flatten(), nn.Flatten()], [0.5])
