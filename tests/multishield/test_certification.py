"""Certified radii against closed forms, their coverage, and attacks that must not break what is certified."""

import pytest
import torch

from multishield import ConfidenceThreshold, RejectClass, Smoothed, Undefended, UserError, certify, evaluate
from multishield.budget import Budget, Components, Square
from multishield.certification import certified_curve
from small import Linear, grey, inside, linear_shield

QUICK = Budget(components=Components(targets=1, steps=10), square=Square(10))


def binary(n):
    """A linear classifier of two classes, images and labels that it gets right, their distances to the boundary."""
    model, x = Linear(2, seed=1), inside(n)
    return model, x, model(x).argmax(1), (model(x).diff(dim=1)[:, 0].abs() / model.weight.diff(dim=0).norm()).numpy()


def test_a_linear_model_is_certified_up_to_its_boundary_and_broken_beyond_it():
    # Cohen et al. 2019, proposition 5. A wrong class needs the threshold beyond the boundary, the right one before it.
    model, x, y, distance = binary(12)
    for slack in (0.0, 0.1):
        defence, radii = ConfidenceThreshold(model, slack * float(model.weight.diff(dim=0).norm())), [0.15, 0.3]
        rows, held = certify(defence, x, y, 0.2, 4000, radii=radii, budget=QUICK), distance + slack
        for radius, limit in ((rows.radius_right, distance - slack), (rows.radius_held, held)):
            assert (((radius < limit) | (radius == 0)) & ((radius > limit - 0.03) | (limit > 0.3))).all()
        assert all(((held < rows.broken_at) & ((rows.broken_at <= r) | (held > r - 0.03))).all() for r in radii)
        assert ((rows.radius_right == 0) & (rows.radius_held > 0.05)).any() == bool(slack), "rejected, and held"
        right, held, attacked = certified_curve(rows, radii)[["right", "held", "attacked"]].to_numpy().T
        assert ((right <= held) & (held <= attacked)).all()


def test_a_radius_is_too_large_as_rarely_as_it_says():
    model, x, y, distance = binary(1)
    rows = certify(Undefended(model), x.expand(300, -1, -1, -1), y.expand(300), sigma=0.4, draws=40, alpha=0.1)
    for radius in (rows.radius_right, rows.radius_held):
        assert 0.005 < (radius > distance[0]).mean() <= 0.1 + 0.03, "and it is not too small either"


@pytest.mark.parametrize("defence", [Undefended(Linear(then=torch.tanh)), linear_shield(tolerance=0.1)])
def test_an_attack_with_many_draws_breaks_no_certified_image(defence):
    x = inside(12)
    y, options = defence.scores(x)[0].argmax(1), {"norm": "L2", "attacks": ["components", "square"], "budget": QUICK}
    radius = torch.tensor(certify(defence, x, y, sigma=0.2, draws=500).radius_held.to_list())
    smoothed, r = Smoothed(defence, 0.2, draws=100, seed=1), float(radius.median())
    broken = [evaluate(smoothed, x, y, eps, **options).attacked["worst_case"][:].success for eps in (r, 20 * r)]
    assert [bool(images.any()) for images in (broken[0] & (radius >= r), broken[1])] == [False, True]


@pytest.mark.parametrize("defence", [Undefended(Linear()), linear_shield(tolerance=0.1), RejectClass(Linear(5))])
def test_the_smoothed_decision_is_that_of_enough_draws(defence):
    x, noise = inside(60), torch.randn(9, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    chosen = torch.stack([defence.outputs(defence.scores(x + 0.1 * one)).argmax(1) for one in noise])
    expected = torch.where((chosen == chosen.mode(0).values).sum(0) > 0.6 * 9, chosen.mode(0).values, 4)
    assert 0 < (expected == 4).sum() < 60
    assert torch.equal(Smoothed(defence, 0.1, draws=9, share=0.6)(x).argmax(1), expected)


def test_an_images_noise_follows_its_id_and_nothing_is_drawn_from_the_callers():
    (model, x, y, _), state = binary(6), torch.get_rng_state()
    turned = certify(Undefended(model), x.flip(0), y.flip(0), 0.2, 50, ids=torch.arange(6).flip(0))
    assert turned[::-1].reset_index(drop=True).equals(certify(Undefended(model), x, y, 0.2, 50))
    assert torch.equal(torch.get_rng_state(), state)


MISTAKES = [({"sigma": 0.0}, "sigma is"), ({"draws": 0}, "draws is"), ({"images": 9 * grey(0.2, 0.7)}, "pixels lie")]


@pytest.mark.parametrize(("change", "words"), MISTAKES)
def test_a_mistake_is_one_sentence(change, words):
    good = {"images": grey(0.2, 0.7), "labels": torch.tensor([0, 1]), "sigma": 0.1, "draws": 10}
    with pytest.raises((UserError, ValueError), match=words):
        certify(Undefended(Linear(2)), **(good | change))
