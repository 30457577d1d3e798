"""The decision rule against brute force."""

import runpy

import pytest
import torch
from torch import nn

from conftest import ROOT
from multishield import MultiShield
from multishield.shield import alignment_gap, shield_output
from small import Linear, linear_shield


def brute_force(z, c, tolerance):
    """Accept the classifier's class k if no class has a cosine more than the tolerance above c_k."""
    k = max(range(len(z)), key=lambda j: z[j])
    return k if max(c) - c[k] <= tolerance else len(z)


@pytest.mark.parametrize("classes", [2, 3, 37, 1000])
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


def test_gradients_of_the_reject_output_reach_the_pixels_through_both_models():
    shield, x = MultiShield(Linear(3, seed=1), Linear(3, seed=2), 0.001), torch.rand(4, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(shield(x)[:, 3].sum(), x)
    z, c = shield.scores(x)
    w, v, k = shield.classifier.weight, shield.alignment.weight, z.argmax(1)
    assert torch.allclose(gradient.flatten(1), w[k] + v[c.argmax(1)] - v[k], atol=1e-5)


def test_deciding_is_not_learning():
    classifier = nn.Sequential(nn.BatchNorm2d(3), Linear())
    before = classifier[0].running_mean.clone()
    MultiShield(classifier, Linear())(torch.rand(20, 3, 4, 4))
    assert torch.equal(classifier[0].running_mean, before)


def test_bad_tolerances_and_models_of_other_classes_are_refused():
    for tolerance in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"tolerance is .*; it must be a finite number >= 0"):
            MultiShield(Linear(), Linear(), tolerance)
    with pytest.raises(ValueError, match=r"\(20, 2\), CLIP's \(20, 5\)"):
        MultiShield(Linear(2), Linear(5))(torch.rand(20, 3, 4, 4))


def test_an_exported_shield_decides_as_the_shield(capsys, monkeypatch):
    shield, x = linear_shield(tolerance=0.02), torch.rand(200, 3, 4, 4)
    graph = torch.export.export(shield, (x[:2],), dynamic_shapes=[{0: torch.export.Dim("images")}])
    decisions = shield(x).argmax(1)
    assert set(decisions.tolist()) == {0, 1, 2, 3, 4}, "each class, and rejection"
    assert torch.equal(graph.module()(x).argmax(1), decisions)
    monkeypatch.syspath_prepend(ROOT / "examples")
    runpy.run_path(str(ROOT / "examples" / "export.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith("100 of 100 decisions are equal; ")
