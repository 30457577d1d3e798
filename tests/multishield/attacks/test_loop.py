"""The loop of all iterative attacks: what an image's result may not depend on, and what every attack keeps."""

import open_clip
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from multishield.attacks import gradient_model as mover
from multishield.attacks.apgd import apgd
from multishield.attacks.joint import joint
from multishield.attacks.loop import ascend
from multishield.attacks.losses import margin
from multishield.attacks.paper import paper
from multishield.attacks.pgd import SignedSteps, fgsm, pgd
from multishield.attacks.plan import NO_TRY, Plan
from multishield.attacks.random_streams import keys, uniform
from multishield.attacks.square import square
from multishield.attacks.threat_model import Ball, evaded, evades, fooled
from multishield.errors import UserError
from multishield.forward import SMALLEST, forward, freeze
from multishield.shield import MultiShield
from paper.models.cifar_resnet import CifarResNet, build_network
from paper.models.classifier import Classifier

EPS = 8 / 255
CPU = torch.device("cpu")


class Linear(torch.nn.Module):
    def __init__(self, classes, pixels=3 * 8 * 8, scale=1.0, seed=0):
        super().__init__()
        weight = scale * torch.randn(classes, pixels, generator=torch.Generator().manual_seed(seed))
        self.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, x):
        return (x.flatten(1) - 0.5) @ self.weight.T


def shield_of(classes, pixels=3 * 8 * 8):
    return MultiShield(Linear(classes, pixels, seed=1), Linear(classes, pixels, 0.02, seed=2), 0.001)


ON_CLASSIFIER = {
    "fgsm": fgsm,
    "pgd": lambda *a, **k: pgd(*a, steps=5, **k),
    "apgd-ce": lambda *a, **k: apgd(*a, steps=8, **k),
    "apgd-dlr": lambda *a, **k: apgd(*a, steps=8, loss="dlr", **k),
    "apgd-t": lambda *a, **k: apgd(*a, steps=8, loss="dlr-targeted", targets=2, **k),
    "square": lambda *a, **k: square(*a, queries=30, **k),
}
ON_SHIELD = {
    "paper": lambda *a, **k: paper(*a, steps=8, **k),
    "joint": lambda *a, **k: joint(*a, steps=8, targets=2, **k),
}
ALL = {**ON_CLASSIFIER, **ON_SHIELD}
NEEDS_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}


def attack(name, classes, x, y, ids=None, **options):
    model = Linear(classes, x[0].numel(), seed=1) if name in ON_CLASSIFIER else shield_of(classes, x[0].numel())
    ids = torch.arange(len(x)) if ids is None else ids
    return model, ALL[name](model, x, y, eps=EPS, seed=0, ids=ids, **options)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=12, deadline=None)
@given(
    classes=st.sampled_from([2, 3, 37, 101, 1000]), count=st.integers(1, 9), grey=st.booleans(), draw=st.integers(0, 99)
)
def test_contract_of_every_attack(name, classes, count, grey, draw):
    generator = torch.Generator().manual_seed(draw)
    x = torch.full((count, 3, 8, 8), 0.5) if grey else torch.rand(count, 3, 8, 8, generator=generator)
    y = Linear(classes, seed=1)(x).argmax(1) if draw % 3 else torch.randint(classes, (count,), generator=generator)
    if classes < NEEDS_CLASSES.get(name, 2):
        y = Linear(classes, seed=1)(x).argmax(1)  # an image that is wrong when clean is never attacked
        with pytest.raises(ValueError, match="needs at least"):
            attack(name, classes, x, y)
        return
    model, result = attack(name, classes, x, y)
    assert result.images.shape == x.shape
    assert (result.images - x).abs().max() <= EPS + 1e-6
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    assert torch.equal(result.images[~result.success], x[~result.success]), "a failed attack returns the clean image"
    rule = fooled if name in ON_CLASSIFIER else evaded
    again = rule(forward(model, result.images), y)
    assert torch.equal(again, result.success), "success is the decision on the stored image"
    wrong = rule(forward(model, x), y)
    assert (result.forwards[wrong] == 1).all(), "what is wrong when clean costs one pass"
    assert torch.equal(result.images[wrong], x[wrong])


@pytest.mark.parametrize("name", ALL)
def test_an_image_never_depends_on_its_neighbours(name):
    """On a real network, bit for bit: batch sizes that refill, other orders, one image alone."""
    torch.manual_seed(1)
    network = freeze(CifarResNet(8, 5))
    model = network if name in ON_CLASSIFIER else MultiShield(network, freeze(CifarResNet(8, 5)), 0.001).eval()
    x, ids = torch.rand(20, 3, 16, 16), torch.arange(40, 60)
    y = network(x).argmax(1)
    starts = [pgd(network, x, y, eps=3 * EPS, steps=2, seed=0, ids=ids)] if name == "joint" else []

    def run(chosen, **options):
        begun = {"starts": [start[chosen] for start in starts]} if starts else {}
        return ALL[name](model, x[chosen], y[chosen], eps=EPS, seed=0, ids=ids[chosen], **begun, **options)

    whole = run(torch.arange(20))
    order = torch.randperm(20)
    for size, chosen in ((7, order), (1, order[:3]), (64, order[:1])):
        part = run(chosen, batch_size=size)
        assert torch.equal(part.images, whole.images[chosen])
        assert torch.equal(part.success, whole.success[chosen])
        assert torch.equal(part.forwards, whole.forwards[chosen])
        assert torch.equal(part.backwards, whole.backwards[chosen])


class Towards:
    """Steps of 0.1 in the first pixel; a try for target t wins at the step of that number."""

    needs_gradient, steps = False, 5

    def first(self, clean, streams):
        return clean.clone()

    def begin(self, x, clean, streams):
        return {}

    def move(self, state, losses, gradients):
        x = state["x"].clone()
        x[:, 0, 0, 0] += 0.1
        x[:, 1, 0, 0] = state["target"] / 10
        return x


@pytest.mark.parametrize("size", [1, 3, 8, 64])
def test_the_first_of_several_tries_side_by_side_ends_them_all(size):
    """Wins are at step = target, in tenths; targets above the last step never win."""
    targets = torch.tensor([[9, 3, 2, 2, 1], [9, 9, 9, 9, 1], [9, 9, 9, 9, 9], [9, 4, 4, 9, NO_TRY]])
    groups = torch.tensor([0, 1, 1, 1, 2]).expand_as(targets)

    def success(out, y):
        return ((out[:, 0] - out[:, 1]).abs() < 0.01) & (out[:, 0] > 0.05)

    def run(group):
        return ascend(
            lambda x: torch.stack([x[:, 0, 0, 0], x[:, 1, 0, 0]], 1),
            torch.zeros(4, 3, 2, 2),
            torch.zeros(4, dtype=torch.long),
            ids=torch.arange(4),
            seed=0,
            tag="t",
            success=success,
            objective=lambda out, *_: (out[:, 0],),
            rule=Towards(),
            where=CPU,
            plan=lambda out, y, index: Plan(targets[index], group=group[index]),
            batch_size=size,
        )

    found = run(groups)
    assert found.success.tolist() == [True, True, False, True]
    assert [round(10 * v) for v in found.images[:, 1, 0, 0].tolist()] == [2, 1, 0, 4], (
        "the sooner one, not the one before"
    )
    # One look at the clean image; six at a lost try; the same number at each of three side by side.
    assert found.forwards.tolist() == [1 + 6 + 3 * 3, 1 + 6 + 3 * 6 + 2, 1 + 6 + 3 * 6 + 6, 1 + 6 + 3 * 5]
    after_each_other = run(torch.arange(5).expand_as(targets))
    assert after_each_other.success.tolist() == found.success.tolist()
    assert after_each_other.forwards.tolist() == [1 + 6 + 4, 1 + 4 * 6 + 2, 1 + 5 * 6, 1 + 6 + 5]


def test_small_batches_are_filled_up():
    seen = []

    def model(x):
        seen.append(len(x))
        return x.flatten(1)[:, :3], -x.flatten(1)[:, :3]

    x = torch.rand(3, 3, 2, 2)
    out = forward(model, x)
    assert seen == [SMALLEST]
    assert torch.equal(out[0], x.flatten(1)[:, :3])
    assert [len(forward(lambda t: t, torch.rand(n, 1))) for n in (1, 4, 40)] == [1, 4, 40]


# With the portable arithmetic, which tests run with. Native, ViT-L/14 was seen to differ on an Intel with AVX-512.
@pytest.mark.parametrize("network", ["resnet20", "torchvision", "ViT-B-32", "ViT-L-14"])
def test_an_image_has_the_same_bits_in_a_batch_of_any_size(network):
    """Outputs and gradients at the sizes that `forward` computes at: multiples of four, and everything from 16 on."""
    torch.manual_seed(0)
    side = {"resnet20": 32, "ViT-L-14": 112}.get(network, 224)  # 65 tokens, one more than a multiple of 8, as 257 are
    if network == "resnet20":
        model = build_network("resnet20", 10)
    elif network == "torchvision":
        model = torchvision.models.resnet18()
    else:  # the first of its blocks: the others are the same
        config = open_clip.get_model_config(network)
        vision = config["vision_cfg"] | {"layers": 1, "image_size": side}
        model = open_clip.CLIP(config["embed_dim"], vision, config["text_cfg"]).visual
    model, x = freeze(Classifier(model, [0.5] * 3, [0.25] * 3)), torch.rand(28, 3, side, side)

    def both(part):
        part = part.clone().requires_grad_()
        out = forward(model, part)
        return out.detach(), torch.autograd.grad(out.square().sum(), part)[0]

    whole = both(x)
    for size in (1, 3, 6, 12, 17, 23) if network == "resnet20" else (1, 6, 12, 17, 23):  # 3 is computed as 1
        for ours, expected in zip(both(x[5 : 5 + size]), whole, strict=True):
            assert torch.equal(ours, expected[5 : 5 + size]), size


def test_no_image_is_left_over_and_none_is_fine():
    model = Linear(4)
    empty = pgd(model, torch.empty(0, 3, 8, 8), torch.empty(0, dtype=torch.long), eps=EPS, seed=0, ids=torch.arange(0))
    assert len(empty.images) == len(empty.success) == len(empty.forwards) == 0


@pytest.mark.parametrize(("size", "most"), [(SMALLEST, SMALLEST), (2 * SMALLEST, 3 * SMALLEST)])
def test_free_slots_are_refilled_and_broken_images_leave(size, most):
    batches = []
    linear = Linear(4)

    def model(x):
        batches.append(len(x))
        return linear(x)

    x = torch.rand(64, 3, 8, 8)
    y = linear(x).argmax(1)
    rule = SignedSteps(Ball(EPS), 10, EPS, random=False)
    options = {"ids": torch.arange(64), "seed": 0, "tag": "t", "success": fooled, "where": CPU}
    ascend(model, x, y, objective=lambda o, y, t, v: (margin(o, y),), rule=rule, batch_size=size, **options)
    assert size <= max(batches) <= most, "the last few come in beyond the slots, but never beyond the fewest"
    # One step breaks a linear model or nothing does: without leaving and refilling each batch would take 11 passes.
    assert len(batches) < (1 + 11) * 64 // size


def test_the_batch_halves_when_memory_does_not_suffice():
    linear = Linear(4)

    def model(x):
        if len(x) > 20:
            raise torch.OutOfMemoryError("too large")
        return linear(x)

    model.parameters = linear.parameters
    x = torch.rand(50, 3, 8, 8)
    y = linear(x).argmax(1)
    result = pgd(model, x, y, eps=EPS, seed=0, ids=torch.arange(50), batch_size=64)
    assert torch.equal(result.success, pgd(linear, x, y, eps=EPS, seed=0, ids=torch.arange(50)).success)

    def never(x):
        raise torch.OutOfMemoryError("too large")

    never.parameters = linear.parameters
    with pytest.raises(UserError, match=f"{SMALLEST} images at once, the fewest, do not fit"):
        pgd(never, x, y, eps=EPS, seed=0, ids=torch.arange(50))


def test_the_twin_moves_and_the_model_decides(monkeypatch):
    """A twin that calls every image broken changes no verdict: the model itself is asked."""
    network = Linear(10)
    monkeypatch.setattr(mover, "folded", lambda model, x: lambda x: -model(x))
    x = torch.rand(40, 3, 8, 8)
    y = network(x).argmax(1)
    result = pgd(network, x, y, eps=1e-5, step_size=1e-6, seed=0, ids=torch.arange(40))
    assert (-network(result.images)).argmax(1).ne(y).all()
    assert torch.equal(fooled(network(result.images), y), result.success)
    assert result.success.sum() <= 2


def test_a_loss_is_sent_back_only_through_the_models_that_decide_it():
    x, called = torch.rand(6, 3, 8, 8, requires_grad=True), []

    def counted(name, model):
        out = model(x)
        out.register_hook(lambda gradient: called.append(name))
        return out

    def margins(out):
        return (*(margin(scores, y) for scores in out), sum(scores[:, 0] for scores in out))

    out, y = (counted("first", Linear(4, seed=1)), counted("second", Linear(4, seed=2))), torch.zeros(6).long()
    expected = [(v, torch.autograd.grad(v.sum(), x, retain_graph=True)[0]) for v in margins(out)]
    called.clear()
    losses, gradients = mover.with_gradients(x, out, margins)
    assert called[:2] == ["first", "second"], "one each for the first two losses"
    assert sorted(called[2:]) == ["first", "second"], "both for the third"
    for found, (value, gradient) in zip(zip(losses, gradients, strict=True), expected, strict=True):
        assert torch.equal(found[0], value)
        assert torch.equal(found[1], gradient)
    (nothing,) = mover.with_gradients(x, (out[0],), lambda out: (0 * out[0].sum(1),))[1]
    assert torch.equal(nothing, torch.zeros_like(x))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_ball(norm):
    ball, x = Ball(0.3, norm), torch.rand(50, 3, 4, 4)
    order = torch.inf if norm == "Linf" else 2
    start = ball.random(x, keys(0, "t", torch.arange(50)))
    distance = torch.linalg.vector_norm(start - x, order, dim=(1, 2, 3))
    assert (distance <= 0.3 + 1e-6).all()
    assert distance.min() > 0
    far = ball.project(x + torch.randn_like(x), x)
    assert (torch.linalg.vector_norm(far - x, order, dim=(1, 2, 3)) <= 0.3 + 1e-6).all()
    assert far.min() >= 0
    assert far.max() <= 1
    assert torch.allclose(ball.project(x, x), x)
    gradient = torch.randn_like(x)
    direction = ball.ascent(gradient)
    length = direction.abs().amax((1, 2, 3)) if norm == "Linf" else direction.flatten(1).norm(dim=1)
    assert torch.allclose(length, torch.ones(50), atol=1e-5)
    with pytest.raises(ValueError, match="norm is 'L1'"):
        Ball(0.3, "L1")


@pytest.mark.parametrize("function", [pgd, apgd])
def test_l2_reaches_the_closed_form_of_a_linear_model(function):
    # Two classes: the margin can grow by at most eps |w_1 - w_0|_2.
    model, x = Linear(2), 0.3 + 0.4 * torch.rand(200, 3, 8, 8)
    z = model(x)
    y = z.argmax(1)
    reach = 0.05 * (model.weight[0] - model.weight[1]).norm()
    breakable = (z[:, 0] - z[:, 1]).abs() < reach
    options = {"step_size": 0.05} if function is pgd else {}
    result = function(model, x, y, eps=0.05, norm="L2", seed=0, ids=torch.arange(200), **options)
    assert 20 < breakable.sum() < 180
    assert not (result.success & ~breakable).any()
    assert (result.success & breakable).sum() >= 0.97 * breakable.sum()


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
    assert [round(v, 6) for v in uniform(torch.tensor([1]), 3)[0].tolist()] == PORTABLE


def splitmix(z):
    """splitmix64's finaliser in Python's integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


PORTABLE = [round((splitmix((1 + i * 0x9E3779B97F4A7C15) % 2**64) >> 40) * 2.0**-24, 6) for i in range(3)]


def test_shield_outputs_of_both_kinds_agree():
    shield = shield_of(7)
    x, y = torch.rand(60, 3, 8, 8), torch.randint(7, (60,))
    assert torch.equal(evaded(shield(x), y), evades(shield)(shield.scores(x), y))
