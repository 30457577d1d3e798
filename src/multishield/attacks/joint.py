"""The adaptive attack that is believed: both models are driven to the same wrong class.

Evading the shield takes agreement: for a target t != y, z_t must be the largest logit and c_t within tau of the largest
cosine. The loss treats both models alike, log softmax(z)_t + log softmax(s c)_t, with s bringing cosines to the scale
of logits. Success is the shield's own decision, never the loss.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multishield.attacks.base import AttackResult, evaded, project, random_start
from multishield.decision import shield_output


def joint_score(logits: Tensor, cosines: Tensor, clip_scale: float) -> Tensor:
    """How likely each class is under both models: log softmax(z) + log softmax(s c), (B,K)."""
    return F.log_softmax(logits, 1) + F.log_softmax(clip_scale * cosines, 1)


def target_order(score: Tensor, labels: Tensor, count: int) -> Tensor:
    """The `count` wrong classes (at most K-1) with the largest joint score, best first: (B,count)."""
    score = score.scatter(1, labels.view(-1, 1), -torch.inf)
    return score.topk(min(count, score.shape[1] - 1), dim=1).indices


def joint(
    shield: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    seed: int,
    ids: Tensor,
    targets: int = 3,
    steps: int = 40,
    restarts: int = 1,
    clip_scale: float = 100.0,
) -> AttackResult:
    """Targeted momentum ascent on the joint score, one target after the other, until the shield accepts a wrong class.

    Args:
        shield: a `MultiShield`, or anything with `scores(x) -> (z, c)` and a `tolerance`.
        images, labels: (B,3,H,W) in [0,1]; (B,).
        eps: L-inf radius. seed, ids: name each image's random starts.
        targets: wrong classes to try, the likeliest first (at most K-1).
        steps: steps per target and restart; their size falls linearly from eps/4 to eps/40.
        restarts: random starts per target.
        clip_scale: s, in logits per unit of cosine; CLIP's own is about 100.
    """
    where = next(iter(shield.parameters())).device
    images, labels = images.to(where), labels.to(where)
    with torch.no_grad():
        logits, cosines = shield.scores(images)
    done = evaded(shield_output(logits, cosines, shield.tolerance), labels)
    order = target_order(joint_score(logits, cosines, clip_scale), labels, targets)
    result, passes = images.clone(), torch.zeros(2, len(images), dtype=torch.long)
    passes[0] = 1
    for restart in range(restarts):
        for rank in range(order.shape[1]):
            live = (~done).nonzero().squeeze(1)
            if not len(live):
                break
            start = random_start(images[live], eps, ids[live.cpu()], seed, f"joint-{restart}-{rank}")
            found, broken, cost = _towards(
                shield, images[live], labels[live], order[live, rank], start, eps, steps, clip_scale
            )
            result[live[broken]], done[live[broken]] = found[broken], True
            passes[:, live.cpu()] += cost
    return AttackResult(result.cpu(), done.cpu(), passes[0], passes[1])


def _towards(
    shield,
    images: Tensor,
    labels: Tensor,
    target: Tensor,
    start: Tensor,
    eps: float,
    steps: int,
    clip_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Drive both models to `target`; returns images, which of them are broken, and the passes (2,B) of each."""
    x_adv, velocity = start.clone(), torch.zeros_like(start)
    broken = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    passes = torch.zeros(2, len(images), dtype=torch.long)
    for step in range(steps + 1):
        live = (~broken).nonzero().squeeze(1)
        if not len(live):
            break
        x = x_adv[live].requires_grad_(step < steps)
        with torch.set_grad_enabled(step < steps):
            logits, cosines = shield.scores(x)
        passes[0, live.cpu()] += 1
        # Any accepted wrong class counts, not the target alone.
        broken[live] = evaded(shield_output(logits, cosines, shield.tolerance).detach(), labels[live])
        if step == steps:
            break
        score = joint_score(logits, cosines, clip_scale).gather(1, target[live].view(-1, 1))
        (gradient,) = torch.autograd.grad(score.sum(), x)
        passes[1, live.cpu()] += 1
        scale = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        velocity[live] = 0.75 * velocity[live] + gradient / scale
        size = eps / 4 * (1 - 0.9 * step / steps)
        moved = project(x.detach() + size * velocity[live].sign(), images[live], eps)
        x_adv[live] = torch.where(broken[live].view(-1, 1, 1, 1), x.detach(), moved)
    return x_adv, broken, passes
