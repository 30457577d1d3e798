"""All attacks: their contract on any model, the independence of images, and closed forms of linear models."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multishield import Ball, MultiShield, apgd, denial, fgsm, joint, one_margin, paper_attack, pgd, square
from multishield.attacks import losses
from multishield.attacks.apgd import checkpoints, likeliest
from multishield.attacks.joint import targets_in_turn
from multishield.attacks.threat_model import evaded, fooled
from multishield.defences import ConfidenceThreshold, Unanimity, Undefended
from multishield.forward import forward
from multishield.images import AttackedImages
from small import Convolutions, Linear, inside, linear_shield

EPS = 8 / 255
ON_CLASSIFIER = {
    "fgsm": fgsm,
    "pgd": lambda *a, **k: pgd(*a, steps=5, **k),
    "apgd-ce": lambda *a, **k: apgd(*a, steps=8, **k),
    "apgd-dlr": lambda *a, **k: apgd(*a, steps=8, loss="dlr", **k),
    "apgd-t": lambda *a, **k: apgd(*a, steps=8, loss="dlr-targeted", targets=2, **k),
    "square": lambda *a, **k: square(*a, queries=30, **k),
}
ON_SHIELD = {
    "paper": lambda *a, **k: paper_attack(*a, steps=8, **k),
    "joint": lambda *a, **k: joint(*a, steps=8, targets=2, **k),
    # Images that both components broke get all tries, from diverse starts at last.
    "joint, all": lambda s, x, y, **k: joint(s, x, y, starts=[AttackedImages(x, ["a"] * len(x), y, y)], steps=3, **k),
}
ALL = {**ON_CLASSIFIER, **ON_SHIELD}
NEEDS_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}


def options(x, eps=EPS, norm="Linf"):
    return {"ball": Ball(eps, norm), "seed": 0, "ids": torch.arange(len(x))}


def agree(success, gap, border=1e-3):
    """Success exactly where the gap is not positive; a hair's breadth decides nothing."""
    assert 0.1 < (gap <= 0).float().mean() < 0.9, "both cases occur"
    sure = gap.abs() > border
    assert torch.equal(success[sure], (gap <= 0)[sure])


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=12, deadline=None)
@given(
    classes=st.sampled_from([2, 3, 37, 101, 1000]), count=st.integers(1, 9), grey=st.booleans(), draw=st.integers(0, 99)
)
def test_contract_of_every_attack(name, classes, count, grey, draw):
    generator = torch.Generator().manual_seed(draw)
    x = torch.full((count, 3, 4, 4), 0.5) if grey else torch.rand(count, 3, 4, 4, generator=generator)
    model = Linear(classes, seed=1) if name in ON_CLASSIFIER else linear_shield(classes)
    y = Linear(classes, seed=1)(x).argmax(1)
    if classes < NEEDS_CLASSES.get(name, 2):
        with pytest.raises(ValueError, match="needs at least"):
            ALL[name](model, x, y, **options(x))
        return
    y = y if draw % 3 else torch.randint(classes, (count,), generator=generator)
    result = ALL[name](model, x, y, **options(x))
    assert result.images.shape == x.shape
    assert (result.images - x).abs().max() <= EPS + 1e-6
    assert torch.equal(result.images, result.images.clamp(0, 1))
    assert torch.equal(result.images[~result.success], x[~result.success]), "a failed attack returns the clean image"
    rule = fooled if name in ON_CLASSIFIER else evaded
    assert torch.equal(rule(forward(model, result.images), y), result.success), "the stored image decides"
    wrong = rule(forward(model, x), y)
    assert (result.forwards[wrong] == 1).all(), "what is wrong when clean costs one pass"
    assert torch.equal(result.images[wrong], x[wrong])


@pytest.mark.parametrize("name", ALL)
def test_an_image_never_depends_on_its_neighbours(name):
    """On a network, bit for bit: batch sizes that refill, other orders, one image alone."""
    network = Convolutions()
    model = network if name in ON_CLASSIFIER else MultiShield(network, Convolutions(), 0.001)
    x, ids = torch.rand(20, 3, 8, 8), torch.arange(40, 60)
    y = network(x).argmax(1)
    starts = [pgd(network, x, y, ball=Ball(3 * EPS), steps=2, seed=0, ids=ids)] if name == "joint" else []

    def run(chosen, **more):
        begun = {"starts": [start[chosen] for start in starts]} if starts else {}
        return ALL[name](model, x[chosen], y[chosen], ball=Ball(EPS), seed=0, ids=ids[chosen], **begun, **more)

    whole, order = run(torch.arange(20)), torch.randperm(20)
    for size, chosen in ((7, order), (1, order[:3]), (64, order[:1])):
        some = run(chosen, batch_size=size)
        assert some.broken_by == whole[chosen].broken_by
        for column in ("images", "forwards", "backwards"):
            assert torch.equal(getattr(some, column), getattr(whole, column)[chosen])


def test_no_images_are_no_error_and_an_unknown_loss_is_one_sentence():
    result = pgd(Linear(), torch.empty(0, 3, 4, 4), torch.empty(0, dtype=torch.long), **options([]))
    assert len(result.images) == len(result.success) == len(result.forwards) == 0
    x = inside(2)
    with pytest.raises(ValueError, match="loss is 'hinge'; accepted are ce, dlr, dlr-targeted, or a function"):
        apgd(Linear(), x, torch.zeros(2).long(), loss="hinge", **options(x))


def test_apgd_reaches_the_closed_form_of_a_linear_classifier():
    # z_t - z_y can grow by at most eps * |w_t - w_y|_1: exactly then an image can be broken.
    model, x = Linear(), inside(200)
    z = model(x)
    y = z.argmax(1)
    gap = z.gather(1, y[:, None]) - z - model.reach(EPS)[y]
    possible = gap.scatter(1, y[:, None], torch.inf).amin(1) < 0
    attacked = apgd(model, x, y, loss=losses.margin, tag="t", steps=50, **options(x))
    assert 0.2 < possible.float().mean() < 0.98, "both cases occur"
    assert not (attacked.success & ~possible).any(), "no attack breaks what cannot be broken"
    assert (attacked.success & possible).sum() >= 0.97 * possible.sum()


@pytest.mark.parametrize(
    ("attack", "eps", "norm", "dual", "more"),
    [(fgsm, EPS, "Linf", 1, {}), (pgd, 0.05, "L2", 2, {"step_size": 0.05}), (apgd, 0.05, "L2", 2, {})],
)
def test_the_closed_form_of_two_classes_is_reached(attack, eps, norm, dual, more):
    # The margin can grow by at most eps |w_1 - w_0| in the dual norm.
    model, x = Linear(2), inside(200)
    z = model(x)
    possible = (z[:, 0] - z[:, 1]).abs() < eps * (model.weight[0] - model.weight[1]).norm(dual)
    result = attack(model, x, z.argmax(1), **options(x, eps, norm), **more)
    assert 20 < possible.sum() < 180
    assert not (result.success & ~possible).any()
    assert (result.success & possible).sum() >= 0.97 * possible.sum()


def test_each_component_alone_is_broken_exactly_where_its_closed_form_says():
    models, x = [Linear(2, seed=1), Linear(2, seed=2)], inside(300)
    for number, model in enumerate(models):
        z = model(x)
        y, tag = z.argmax(1), f"on component {number}"
        result = one_margin(Unanimity(models), x, y, component=number, tag=tag, steps=50, **options(x))
        agree(result.success, (z[:, 0] - z[:, 1]).abs() - model.reach(EPS)[0, 1])
        assert (model(result.images).argmax(1) != y)[result.success].all()


def test_denial_reaches_exactly_what_is_near_the_region_of_rejection():
    model, x, threshold = Linear(2, seed=1), inside(300), 1.0
    defence, z = ConfidenceThreshold(model, threshold), model(x)
    result = denial(defence, x, z.argmax(1), steps=50, **options(x))
    agree(result.success, (z[:, 0] - z[:, 1]).abs() - threshold - model.reach(EPS)[0, 1])
    assert (defence(result.images).argmax(1) == 2)[result.success].all()
    assert (result.images - x).abs().max() <= EPS + 1e-6


def test_targets_without_hope_are_given_up_and_near_ones_are_not():
    """What is beyond reach costs a tenth of the steps, and no verdict."""
    model, x, left = Linear(3, seed=2), inside(300), []
    z = model(x)
    y, reach = z.argmax(1), model.reach(EPS)[z.argmax(1)]
    gap = (z.gather(1, y[:, None]) - z - reach).scatter(1, y[:, None], torch.inf)
    more = {"targets": 2, "watch": lambda i, attacked, steps: left.append(steps)}
    result = one_margin(Undefended(model), x, y, component=0, tag="on the classifier", **options(x), **more)
    agree(result.success, gap.amin(1))
    beyond = (gap > reach).all(1)  # more is missing than can be gained
    assert beyond.sum() > 10
    assert (result.forwards[beyond] <= 1 + 101 + 51 + 2 * 12).all(), "two untargeted tries, two that are given up"
    assert left == sorted(left, reverse=True), "the progress line never goes back"
    assert left[-1] == 0


def test_a_search_without_hope_ends_early_and_loses_nothing(monkeypatch):
    model, x = Linear(2), inside(40)
    z = model(x)
    y, gap, reach = z.argmax(1), (z[:, 0] - z[:, 1]).abs(), model.reach(EPS)[0, 1]
    result = square(model, x, y, queries=1000, **options(x))
    assert not (result.success & (gap >= reach)).any()
    assert (result.forwards[gap > 1.5 * reach] <= 803).all(), "judged after 800 queries"
    assert (gap > 1.5 * reach).sum() > 5
    one_by_one = square(model, x[:4], y[:4], queries=1000, batch_size=1, **options(x[:4]))
    assert torch.equal(one_by_one.forwards, result.forwards[:4])
    monkeypatch.setattr("multishield.attacks.square.PATIENCE", torch.inf)
    patient = square(model, x, y, queries=1000, **options(x))
    assert torch.equal(patient.success, result.success)
    assert (patient.forwards[gap > reach] > 1000).all()


def test_targets_are_wrong_classes_likeliest_first_which_the_models_name_in_turn_whatever_their_scale():
    assert likeliest(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), torch.tensor([1]), 9).tolist() == [[3, 2, 0]]
    z = torch.tensor([[9.0, 5.0, 4.0, 1.0, 2.0]])  # the classifier's order of wrong classes: 1 2 4 3
    c = torch.tensor([[0.3, 0.1, 0.2, 0.5, 0.4]])  # CLIP's: 3 4 2 1
    y, both = torch.tensor([0]), torch.stack([z, c], 1)
    assert targets_in_turn(both, y, 9).tolist() == [[1, 3, 2, 4]]
    assert targets_in_turn(both, y, 2).tolist() == [[1, 3]]
    assert targets_in_turn(torch.stack([0.01 * z, 1000 * c], 1), y, 9).tolist() == [[1, 3, 2, 4]]
    assert targets_in_turn(z.unsqueeze(1), y, 9).tolist() == [[1, 2, 4, 3]]
    tied = torch.zeros(1, 2, 1000)
    assert sorted(targets_in_turn(tied, torch.tensor([7]), 999)[0].tolist()) == [*range(7), *range(8, 1000)]


def test_checkpoints_of_auto_pgd():
    # Croce & Hein 2020, section 3.3, for 100 steps: 22, 41, 57, 70, 80, 87, 93, 99.
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
