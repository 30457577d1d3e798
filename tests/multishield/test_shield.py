"""The decision rule against brute force."""

import pytest
import torch

from multishield.shield import MultiShield, alignment_gap, shield_output


def brute_force(z, c, tolerance):
    """Accept the classifier's class k if no class has a cosine more than the tolerance above c_k."""
    k = max(range(len(z)), key=lambda j: z[j])
    return k if max(c) - c[k] <= tolerance else len(z)


@pytest.mark.parametrize("classes", [2, 3, 37, 101, 1000])
@pytest.mark.parametrize("tolerance", [0.0, 0.001, 0.1])
def test_argmax_is_the_rule(classes, tolerance):
    logits, cosines = torch.randn(200, classes), torch.rand(200, classes) * 0.3
    cosines[:50] = cosines[:50].scatter(1, logits[:50].argmax(1, keepdim=True), 0.3)  # agreement too
    decision = shield_output(logits, cosines, tolerance).argmax(1).tolist()
    expected = [brute_force(z, c, tolerance) for z, c in zip(logits.tolist(), cosines.tolist(), strict=True)]
    assert decision == expected
    assert {classes, *decision} != {classes}, "some are accepted"


def test_a_gap_just_above_the_tolerance_is_rejected_beside_large_logits():
    # 1e4 + 1e-6 is 1e4 in float32: without care the reject logit would drown.
    logits, cosines = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.2, 0.2 + 1e-6]])
    assert shield_output(logits, cosines, 0.0).argmax(1).item() == 2
    assert shield_output(logits, cosines, 0.01).argmax(1).item() == 0


def test_gap_is_zero_where_both_agree_and_the_distance_otherwise():
    logits, cosines = torch.tensor([[3.0, 1.0], [1.0, 3.0]]), torch.tensor([[0.3, 0.1], [0.3, 0.1]])
    assert torch.allclose(alignment_gap(logits, cosines), torch.tensor([0.0, 0.2]))


class Linear(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


def test_gradients_of_the_reject_output_reach_the_pixels_through_both_models():
    classifier, alignment = Linear(torch.randn(3, 12)), Linear(torch.randn(3, 12))
    x = torch.rand(4, 3, 2, 2, requires_grad=True)
    shield = MultiShield(classifier, alignment, 0.001)
    (gradient,) = torch.autograd.grad(shield(x)[:, 3].sum(), x, retain_graph=True)
    z, c = shield.scores(x)
    k = z.argmax(1)
    expected = classifier.weight[k] + alignment.weight[c.argmax(1)] - alignment.weight[k]
    assert torch.allclose(gradient.flatten(1), expected, atol=1e-5)


@pytest.mark.parametrize("tolerance", [-0.1, float("inf"), float("nan")])
def test_bad_tolerance(tolerance):
    with pytest.raises(ValueError, match="tolerance"):
        MultiShield(Linear(torch.randn(3, 12)), Linear(torch.randn(3, 12)), tolerance)
