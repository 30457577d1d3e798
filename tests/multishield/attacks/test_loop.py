"""The loop of all iterative attacks: side-by-side tries, free slots, memory, and gradients."""

import pytest
import torch

from multishield import Ball, UserError, pgd
from multishield.attacks.loop import Rule, ascend, with_gradients
from multishield.attacks.losses import margin
from multishield.attacks.pgd import SignedSteps
from multishield.attacks.plan import NO_TRY, Plan
from multishield.attacks.threat_model import fooled
from multishield.forward import FILL
from small import Linear

BALL, IDS = Ball(8 / 255), torch.arange(64)


class Towards(Rule):
    """Steps of 0.1 in the first pixel; a try for target t wins at the step of that number."""

    needs_gradient = False

    def first(self, clean, streams):
        return clean.clone()

    def move(self, state, losses, gradients):
        x = state["x"].clone()
        x[:, 0, 0, 0] += 0.1
        x[:, 1, 0, 0] = state["target"] / 10
        return x


@pytest.mark.parametrize("size", [1, 3, 8, 64])
def test_the_first_of_several_tries_side_by_side_ends_them_all(size):
    """Wins are at step = target, in tenths; targets above the last step never win."""
    targets = torch.tensor([[9, 3, 2, 2, 1], [9, 9, 9, 9, 1], [9, 9, 9, 9, 9], [9, 4, 4, 9, NO_TRY]])

    def run(group):
        group = torch.tensor(group).expand_as(targets)
        return ascend(
            lambda x: torch.stack([x[:, 0, 0, 0], x[:, 1, 0, 0]], 1),
            torch.zeros(4, 3, 2, 2),
            torch.zeros(4, dtype=torch.long),
            ids=torch.arange(4),
            seed=0,
            tag="t",
            success=lambda out, y: ((out[:, 0] - out[:, 1]).abs() < 0.01) & (out[:, 0] > 0.05),
            objective=lambda out, *_: (out[:, 0],),
            rule=Towards(BALL, 5),
            plan=lambda out, y, index: Plan(targets[index], group=group[index]),
            batch_size=size,
        )

    beside = run([0, 1, 1, 1, 2])
    assert beside.success.tolist() == [True, True, False, True]
    winners = [round(10 * v) for v in beside.images[:, 1, 0, 0].tolist()]
    assert winners == [2, 1, 0, 4], "the sooner one, not the one before"
    # One look at the clean image; six at a lost try; the same number at each of three side by side.
    assert beside.forwards.tolist() == [1 + 6 + 3 * 3, 1 + 6 + 3 * 6 + 2, 1 + 6 + 3 * 6 + 6, 1 + 6 + 3 * 5]
    after_each_other = run([0, 1, 2, 3, 4])
    assert after_each_other.success.tolist() == beside.success.tolist()
    assert after_each_other.forwards.tolist() == [1 + 6 + 4, 1 + 4 * 6 + 2, 1 + 5 * 6, 1 + 6 + 5]


@pytest.mark.parametrize(("size", "most"), [(FILL, FILL), (2 * FILL, 3 * FILL)])
def test_free_slots_are_refilled_and_broken_images_leave(size, most):
    model, x, batches = Linear(), torch.rand(64, 3, 4, 4), []
    y = model(x).argmax(1)
    model.register_forward_hook(lambda module, given, out: batches.append(len(out)))
    rule = SignedSteps(BALL, 10, BALL.eps, random=False)
    named = {"ids": IDS, "seed": 0, "tag": "t", "success": fooled, "batch_size": size}
    ascend(model, x, y, objective=lambda o, y, t, v: (margin(o, y),), rule=rule, **named)
    assert size <= max(batches) <= most, "the last few come in beyond the slots, but never beyond the fewest"
    # One step breaks a linear model or nothing does: without leaving and refilling each batch would take 11 passes.
    assert len(batches) < (1 + 11) * 64 // size


def test_the_batch_is_halved_when_memory_does_not_suffice():
    x, y, limit = torch.rand(64, 3, 4, 4), torch.arange(64) % 4, 20

    class Small(Linear):
        def forward(self, x):
            if len(x) > limit:
                raise torch.OutOfMemoryError("too large")
            return super().forward(x)

    options = {"ball": BALL, "seed": 0, "ids": IDS, "batch_size": 64}
    assert torch.equal(pgd(Small(), x, y, **options).images, pgd(Linear(), x, y, **options).images)
    limit = 0
    with pytest.raises(UserError, match=f"a batch of {FILL} images, the smallest, does not fit into the memory"):
        pgd(Small(), x, y, **options)


def test_a_loss_is_sent_back_only_through_the_models_that_decide_it():
    x, y, called = torch.rand(6, 3, 4, 4, requires_grad=True), torch.zeros(6).long(), []

    def watched(name, model):
        out = model(x)
        out.register_hook(lambda gradient: called.append(name))
        return out

    def losses_of(out):
        return (*(margin(scores, y) for scores in out), sum(scores[:, 0] for scores in out))

    out = watched("first", Linear(seed=1)), watched("second", Linear(seed=2))
    expected = [(v, torch.autograd.grad(v.sum(), x, retain_graph=True)[0]) for v in losses_of(out)]
    called.clear()
    losses, gradients = with_gradients(x, losses_of, out)
    assert called[:2] == ["first", "second"], "one each for the first two losses"
    assert sorted(called[2:]) == ["first", "second"], "both for the third"
    for loss, gradient, (value, slope) in zip(losses, gradients, expected, strict=True):
        assert torch.equal(loss, value)
        assert torch.equal(gradient, slope)
    (nothing,) = with_gradients(x, lambda out: (0 * out[0].sum(1),), (out[0],))[1]
    assert torch.equal(nothing, torch.zeros_like(x))
