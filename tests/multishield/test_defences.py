"""Defences against known answers: each decides as its sentence says, and its margins are that decision."""

import pytest
import scipy.stats
import torch
from torch import nn

from multishield import MultiShield, RejectClass, SummedLogProbabilities, Unanimity, Undefended
from multishield.defences import ConfidenceThreshold, ConsistentPrediction, FeatureSqueezing, calibrate, reduced_bits
from small import Brightness, grey


class Table(nn.Module):
    """Scores of one image after the other, whatever the pixels are."""

    def __init__(self, *scores):
        super().__init__()
        self.rows = torch.tensor(scores)

    def forward(self, x):
        return self.rows[: len(x)]


REJECT = 3
LOGITS = Table([4.0, 1.0, 0.0], [2.0, 1.9, 0.0], [0.0, 0.0, 3.0])
COSINES = Table([0.3, 0.2, 0.1], [0.2, 0.21, 0.1], [0.3, 0.2, 0.1])
OTHER = Table([1.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.2])
KNOWN = {
    "alone": (Undefended(LOGITS), [0, 0, 2]),
    "a margin": (ConfidenceThreshold(LOGITS, 0.5), [0, REJECT, 2]),
    # The second image has a largest probability of 0.487, the others of more than 0.9.
    "a probability": (ConfidenceThreshold(LOGITS, 0.5, of="probability"), [0, REJECT, 2]),
    "K+1 outputs": (RejectClass(Table([4.0, 1, 0, 2], [2.0, 1, 0, 3], [0.0, 0, 3, 3])), [0, REJECT, 2]),
    "the shield": (MultiShield(LOGITS, COSINES, 0.001), [0, REJECT, REJECT]),
    "the shield, tolerant": (MultiShield(LOGITS, COSINES, 0.02), [0, 0, REJECT]),
    "unanimity": (Unanimity([LOGITS, OTHER]), [0, REJECT, 2]),
    "unanimity, by a margin": (Unanimity([LOGITS, OTHER], [0.0, 0.5]), [0, REJECT, REJECT]),
    "unanimity of three": (Unanimity([LOGITS, OTHER, COSINES]), [0, REJECT, REJECT]),
    # The sums lead by 3.0, 0.1 and 3.0 of logits, and by 10 times 0.1, -0.01 and -0.2 of cosines.
    "summed, equally sure": (SummedLogProbabilities(LOGITS, COSINES, 10.0, 0.5), [0, REJECT, 2]),
    "summed, CLIP surer": (SummedLogProbabilities(LOGITS, COSINES, 20.0, 0.0), [0, 1, 0]),
}


@pytest.mark.parametrize(("defence", "decisions"), KNOWN.values(), ids=KNOWN)
def test_decisions(defence, decisions):
    x = torch.zeros(3, 3, 2, 2)
    assert defence(x).shape == (3, 4)
    assert defence(x).argmax(1).tolist() == decisions
    accepted = (defence.margins(defence.scores(x)) >= 0).all(1)
    assert [row.nonzero()[:, 0].tolist() for row in accepted] == [[] if d == REJECT else [d] for d in decisions]


@pytest.mark.parametrize("tolerance", [0.0, 0.001, 0.05])
def test_the_shields_margins_are_its_outputs(tolerance):
    z, c = torch.randn(5000, 6), 0.1 * torch.randn(5000, 6)
    shield = MultiShield(nn.Flatten(), nn.Flatten(), tolerance)
    same = Unanimity([nn.Flatten(), nn.Flatten()], [0.0, -tolerance])
    decision = shield.outputs((z, c)).argmax(1)
    assert 0.05 < (decision == 6).float().mean() < 0.95
    assert torch.equal(same.outputs((z, c)).argmax(1), decision)
    accepted = (shield.margins((z, c)) >= 0).all(1)
    assert torch.equal(accepted.any(1), decision < 6)
    assert torch.equal(accepted.float().argmax(1)[decision < 6], decision[decision < 6])


def test_squeezing_rejects_an_image_that_changes_when_it_is_squeezed():
    # The boundary is 0.53; 0.54 becomes 8/15 = 0.533, and 0.52 does too.
    defence = FeatureSqueezing(Brightness(boundary=0.53))
    assert defence(grey(0.2, 0.52, 0.54, 0.9)).argmax(1).tolist() == [0, 2, 1, 1]
    x = torch.rand(2, 3, 5, 5, requires_grad=True)
    squeezed = reduced_bits(x, bits=2)
    assert set((3 * squeezed).round(decimals=4).flatten().tolist()) <= {0.0, 1.0, 2.0, 3.0}
    assert torch.equal(torch.autograd.grad(squeezed.sum(), x)[0], torch.ones_like(x))


def test_consistency_rejects_an_image_that_a_small_step_changes():
    model, x = Brightness(10.0), grey(0.2, 0.47, 0.49, 0.51, 0.53, 0.999)
    defence = ConsistentPrediction(model, radius=0.02, steps=3, size=0.01)  # the third step would leave the ball
    with torch.no_grad():
        assert defence(x).argmax(1).tolist() == [0, 0, 2, 2, 1, 1]
        assert torch.allclose(defence.scores(x)[1], model(grey(0.22, 0.49, 0.51, 0.49, 0.51, 0.979)), atol=1e-5)
    # The neighbour must have a margin, too: 20 |level - 0.5| is 0.2 for 0.53's, and 5.6 for 0.2's.
    strict = ConsistentPrediction(model, radius=0.02, required=(0.0, 0.3), steps=1, size=0.02)
    assert strict(x).argmax(1).tolist() == [0, 2, 2, 2, 2, 1]


@pytest.mark.parametrize(("steps", "size"), [(1, 0.05), (10, 0.01)])
def test_the_neighbour_is_that_of_pgd_and_has_the_gradient_of_the_identity(steps, size):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).requires_grad_(False)
    defence, passes = ConsistentPrediction(network, radius=0.05, steps=steps, size=size), []
    network.register_forward_hook(lambda *_: passes.append(1))
    x = torch.rand(5, 3, 4, 4, requires_grad=True)
    logits, again = defence.scores(x)
    assert len(passes) == 1 + steps
    neighbour = x.detach()
    for _ in range(steps):
        doubt = nn.functional.cross_entropy(network(neighbour.requires_grad_()), logits.argmax(1), reduction="sum")
        moved = neighbour.detach() + size * torch.autograd.grad(doubt, neighbour)[0].sign()
        neighbour = moved.clamp(x - 0.05, x + 0.05).clamp(0, 1).detach()
    expected = network(neighbour.requires_grad_())
    assert torch.allclose(again, expected, atol=1e-6)
    (slope,) = torch.autograd.grad(again[:, 0].sum(), x)
    assert torch.allclose(slope, torch.autograd.grad(expected[:, 0].sum(), neighbour)[0], atol=1e-6)
    with torch.no_grad():
        without = defence.scores(x.detach())
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(without, (logits, again), strict=True))


def test_a_threshold_is_calibrated_to_a_wanted_rejection():
    logits = torch.tensor([[i / 100, 0.0] for i in range(1, 101)]).view(100, 2, 1, 1)  # margins 0.01 to 1

    def build(threshold):
        return ConfidenceThreshold(nn.Flatten(), threshold)

    assert calibrate(build, logits, 0.0).threshold == 0, "nothing may be rejected"
    for wanted in (0.05, 0.057, 0.5, 0.98):
        defence = calibrate(build, logits, wanted)
        rejected = (defence(logits).argmax(1) == 2).sum()
        assert rejected == int(101 * wanted) - 1
        assert (build(defence.threshold + 0.01)(logits).argmax(1) == 2).sum() > rejected, "the largest that will do"
    with pytest.raises(ValueError, match=r"rejection is 1, low 0.0, high 1.0, .* 0; give 0 <= rejection < 1"):
        calibrate(build, logits[:0], 1)
    with pytest.raises(ValueError, match=r"the threshold 0.505 rejects 50 of 100 images already; lower `low`"):
        calibrate(build, logits, 0.1, low=0.505, high=0.6)


@pytest.mark.long
def test_a_new_image_is_rejected_no_more_often_than_was_wanted():
    """Over 1,000 sets of 99 uniform scores the rejection of new ones is of the distribution Beta(10, 90)."""
    draws, found = torch.rand(1000, 99, generator=torch.Generator().manual_seed(0)), []
    for scores in draws:
        logits = torch.stack([scores, torch.zeros(99)], 1).view(99, 2, 1, 1)
        found.append(calibrate(lambda t: ConfidenceThreshold(nn.Flatten(), t), logits, 0.1).threshold)
    assert scipy.stats.kstest(found, scipy.stats.beta(10, 90).cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: (255 * x).to(torch.uint8), None),
        (lambda x: (x - 0.5) / 0.25, r"pixels lie in \[-1.*; they must lie in \[0,1\]: normalise in the model"),
        (lambda x: 255 * x, "pixels lie in"),
        (lambda x: x / 0, "image 0 has a pixel that is not a finite number"),
        (lambda x: x.numpy(), "images are ndarray; pixels are floating point"),
    ],
)
def test_one_gate_for_the_images_of_calibrate_and_of_a_defence(change, words):
    model, x = Brightness(), grey(*torch.linspace(0.05, 0.95, 100).tolist())

    def build(threshold):
        return ConfidenceThreshold(model, threshold)

    if words is None:  # bytes are divided by 255 once
        x = (255 * x).round() / 255
        assert calibrate(build, change(x), 0.1).threshold == pytest.approx(calibrate(build, x, 0.1).threshold, abs=1e-6)
        words = "images are torch.uint8; .* divide bytes by 255"
    else:
        with pytest.raises(ValueError, match=words):
            calibrate(build, change(x), 0.1)
    for defence in (build(0.1), MultiShield(model, model)):
        with pytest.raises(ValueError, match=words):
            defence(change(x))


def test_bad_thresholds_and_margins_are_refused():
    with pytest.raises(ValueError, match=r"of is 'entropy', threshold 1"):
        ConfidenceThreshold(nn.Flatten(), 1, of="entropy")
    with pytest.raises(ValueError, match=r"threshold nan"):
        ConfidenceThreshold(nn.Flatten(), float("nan"))
    with pytest.raises(ValueError, match="2 models, 1 required margins; give one per model"):
        Unanimity([nn.Flatten(), nn.Flatten()], [0.5])
