"""Attacks against closed forms, exhaustive search and their own contracts."""

import itertools

import pytest
import torch

from multishield.attacks import losses
from multishield.attacks.apgd import apgd, checkpoints, likeliest
from multishield.attacks.joint import joint, targets_in_turn
from multishield.attacks.losses import evasion_margin
from multishield.attacks.paper import ce_loss, dlr_loss, paper
from multishield.attacks.pgd import fgsm
from multishield.attacks.square import square
from multishield.attacks.threat_model import evaded, fooled
from multishield.shield import MultiShield
from paper.stages.autoattack import autoattack

EPS = 8 / 255


class Linear(torch.nn.Module):
    """Linear scores of the pixels, around grey, so that every class wins somewhere."""

    def __init__(self, classes, pixels=3 * 4 * 4, scale=1.0, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(scale * torch.randn(classes, pixels, generator=generator), requires_grad=False)

    def forward(self, x):
        return (x.flatten(1) - 0.5) @ self.weight.T


def linear_shield(classes=4, tolerance=0.001):
    return MultiShield(Linear(classes, seed=1), Linear(classes, scale=0.02, seed=2), tolerance)


def images(n=24):
    return 0.1 + 0.8 * torch.rand(n, 3, 4, 4)  # the ball stays inside [0,1]


def test_linear_classifier_closed_form():
    # z_t - z_y can grow by at most eps * |w_t - w_y|_1: exactly then an image can be broken.
    model, x = Linear(4), images(200)
    logits = model(x)
    y = logits.argmax(1)
    reach = EPS * (model.weight[:, None] - model.weight[None]).abs().sum(2)
    breakable = torch.stack(
        [(logits[:, t] - logits.gather(1, y[:, None])[:, 0] + reach[t, y] > 0) & (y != t) for t in range(4)]
    )
    breakable = breakable.any(0)
    assert 0.2 < breakable.float().mean() < 0.98, "both cases occur"

    def margin(z, labels):  # its maximum is the closed form's
        own = z.gather(1, labels[:, None])[:, 0]
        return z.scatter(1, labels[:, None], -torch.inf).max(1).values - own

    found = apgd(model, x, y, eps=EPS, seed=0, ids=torch.arange(200), success=fooled, loss=margin, tag="t", steps=50)
    assert not (found.success & ~breakable).any(), "no attack breaks what cannot be broken"
    assert (found.success & breakable).sum() >= 0.97 * breakable.sum()


def test_joint_on_a_tiny_image_against_exhaustive_search():
    # Two pixels matter. A grid over the ball finds out which images can be evaded; joint must find nearly all of them.
    shield = MultiShield(Linear(3, pixels=3, scale=4.0, seed=5), Linear(3, pixels=3, seed=6), 0.01)
    shield.alignment.weight += shield.classifier.weight / 2  # two models of the same task: they mostly agree
    x = 0.3 + 0.4 * torch.rand(150, 3, 1, 1)
    y, eps = shield.classifier(x).argmax(1), 0.1
    offsets = torch.tensor(list(itertools.product(torch.linspace(-eps, eps, 41).tolist(), repeat=3))).view(-1, 3, 1, 1)
    possible = torch.stack(
        [evaded(shield(xi + offsets), yi.expand(len(offsets))).any() for xi, yi in zip(x, y, strict=True)]
    )
    found = joint(shield, x, y, eps=eps, seed=0, ids=torch.arange(150), targets=2, steps=60)
    assert 10 < possible.sum() < 140
    assert (found.success & possible).sum() >= 0.97 * possible.sum()
    assert torch.equal(evaded(shield(found.images), y), found.success)


def test_joint_beats_the_papers_attack_where_the_models_disagree():
    shield = linear_shield(10)
    x = images(60)
    y = shield.classifier(x).argmax(1)
    weak = paper(shield, x, y, eps=EPS, seed=0, ids=torch.arange(60), steps=40)
    strong = joint(shield, x, y, eps=EPS, seed=0, ids=torch.arange(60), targets=9, steps=40)
    assert strong.success.sum() >= weak.success.sum()
    assert strong.success.sum() > 0


def test_paper_losses_closed_forms():
    outputs = torch.tensor([[2.0, 1.0, 0.5, 3.0]])  # reject is the last
    label = torch.tensor([0])
    expected = 2 * torch.logsumexp(outputs, 1) - 2.0 - 3.0
    assert torch.allclose(ce_loss(outputs, label), expected)
    # y and reject are the two largest: the two DLR terms cancel exactly, and so do their gradients.
    outputs.requires_grad_()
    value = dlr_loss(outputs, label)
    (gradient,) = torch.autograd.grad(value.sum(), outputs)
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max() < 1e-6


def test_evaded_never_takes_class_ten_for_rejection():
    outputs = torch.zeros(1, 38)
    outputs[0, 10] = 1
    assert evaded(outputs, torch.tensor([0])).item()
    outputs[0, 37] = 2
    assert not evaded(outputs, torch.tensor([0])).item()


def test_targets_are_wrong_classes_likeliest_first():
    score = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    assert likeliest(score, torch.tensor([1]), 9).tolist() == [[3, 2, 0]]


def test_the_models_name_targets_in_turn_and_no_scale_matters():
    z = torch.tensor([[9.0, 5.0, 4.0, 1.0, 2.0]])  # the classifier's order of wrong classes: 1 2 4 3
    c = torch.tensor([[0.3, 0.1, 0.2, 0.5, 0.4]])  # CLIP's: 3 4 2 1
    y = torch.tensor([0])
    both = torch.stack([z, c], 1)
    assert targets_in_turn(both, y, 9).tolist() == [[1, 3, 2, 4]]
    assert targets_in_turn(both, y, 2).tolist() == [[1, 3]]
    assert targets_in_turn(torch.stack([0.01 * z, 1000 * c], 1), y, 9).tolist() == [[1, 3, 2, 4]]
    assert targets_in_turn(z.unsqueeze(1), y, 9).tolist() == [[1, 2, 4, 3]]
    tied = torch.zeros(1, 2, 1000)
    assert sorted(targets_in_turn(tied, torch.tensor([7]), 999)[0].tolist()) == [*range(7), *range(8, 1000)]


def test_checkpoints_of_auto_pgd():
    # Croce & Hein 2020, section 3.3, for 100 steps: 22, 41, 57, 70, 80, 87, 93, 99.
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_autoattack_is_seeded_and_keeps_wrong_images():
    model, x = Linear(4), images(12)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4  # wrong before any attack
    runs = [
        autoattack(model, x, y, eps=EPS, seed=3, ids=torch.arange(12), attacks=("apgd-ce", "apgd-t")) for _ in range(2)
    ]
    first, second = runs
    assert torch.equal(first.images, second.images)
    assert first.broken_by == second.broken_by
    assert first.broken_by[0] == "clean"
    assert torch.equal(first.images[0], x[0])
    assert torch.equal(fooled(model(first.images), y), first.success)


def test_evasion_margin_is_positive_exactly_where_a_wrong_class_is_accepted():
    shield = linear_shield(6, tolerance=0.02)
    x, y = torch.rand(400, 3, 4, 4), torch.randint(0, 6, (400,))
    wins = evaded(shield(x), y)
    assert 0.02 < wins.float().mean() < 0.98
    assert torch.equal(evasion_margin(shield.scores(x), y, shield) >= 0, wins)


def test_losses_closed_forms():
    z, y, t = torch.tensor([[1.0, 4.0, 2.0, 0.0]]), torch.tensor([1]), torch.tensor([2])
    assert losses.ce(z, y).item() == pytest.approx(-z.log_softmax(1)[0, 1].item())
    assert losses.margin(z, y).item() == -2
    assert losses.dlr(z, y).item() == pytest.approx(-2 / 3)  # (2 - 4) / (4 - 1)
    assert losses.dlr_targeted(z, y, t).item() == pytest.approx(-2 / 3.5)  # (2 - 4) / (4 - (1 + 0) / 2)


def test_fgsm_is_exact_on_a_linear_model():
    model, x = Linear(2), images(100)
    z = model(x)
    y, reach = z.argmax(1), EPS * (model.weight[0] - model.weight[1]).abs().sum()
    result = fgsm(model, x, y, eps=EPS, seed=0, ids=torch.arange(100))
    assert torch.equal(result.success, (z[:, 0] - z[:, 1]).abs() < reach)
    assert 5 < result.success.sum() < 100


def test_a_search_without_hope_ends_early_and_loses_nothing(monkeypatch):
    model, x = Linear(2), images(60)
    z = model(x)
    y, gap = z.argmax(1), (z[:, 0] - z[:, 1]).abs()
    reach = EPS * (model.weight[0] - model.weight[1]).abs().sum()
    options = {"eps": EPS, "seed": 0, "ids": torch.arange(60), "queries": 2000}
    found = square(model, x, y, **options)
    assert not (found.success & (gap >= reach)).any()
    assert (found.forwards[gap > 1.5 * reach] <= 803).all(), "judged after 800 queries"
    assert (gap > 1.5 * reach).sum() > 5
    monkeypatch.setattr("multishield.attacks.square.PATIENCE", torch.inf)
    patient = square(model, x, y, **options)
    assert torch.equal(patient.success, found.success)
    assert (patient.forwards[gap > reach] > 2000).all()
