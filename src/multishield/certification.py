"""A lower bound beside the attack: L2 radii in which no attack breaks a smoothed defence (Cohen et al. 2019)."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import torch
from scipy.special import betaincinv, ndtri
from torch import Tensor, nn

from multishield.attacks.components import one_margin
from multishield.attacks.random_streams import keys
from multishield.attacks.threat_model import Ball
from multishield.budget import Budget
from multishield.defences import Defence
from multishield.forward import own_settings
from multishield.inputs import images_of, usable_defence
from multishield.portfolio import Attacker
from multishield.progress import progress
from multishield.records import decide


class Smoothed(Defence):
    """The class that more than a `share` of a defence's decisions on noisy copies of the image name, else "reject".

    `sigma` is the standard deviation of the noise in [0,1] pixels, which are not cut off; the `seed` freezes it. A
    class has the margin of the last draw that it needs, >= 0 exactly where enough draws accept it: the smallest of the
    components' margins, in units of their spread over the classes. The gradient is the mean of the nearest draws,
    because that of one is mostly noise. Raises ValueError for a number out of range.
    """

    def __init__(self, defence: nn.Module, sigma: float, draws: int = 64, share: float = 0.5, seed: int = 0):
        super().__init__()
        if not (0 < sigma < float("inf") and draws >= 1 and 0.5 <= share < 1):
            raise ValueError(f"sigma is {sigma}, draws {draws}, share {share}; accepted are > 0, >= 1 and [0.5, 1)")
        self.defence, self.sigma, self.draws, self.share, self.seed = defence, sigma, draws, share, seed

    def scores(self, x: Tensor) -> tuple[Tensor, ...]:
        noise = torch.randn(self.draws, *x.shape[1:], generator=torch.Generator().manual_seed(self.seed))
        scores = self.defence.scores((x.unsqueeze(1) + self.sigma * noise.to(x)).flatten(0, 1))
        return tuple(s.unflatten(0, (len(x), self.draws)) for s in scores)

    def margins(self, scores: tuple[Tensor, ...]) -> Tensor:
        margins = self.defence.margins(tuple(s.flatten(0, 1) for s in scores))
        if margins.shape[1] > 1 and margins.shape[2] > 2:  # logits and cosines have no unit in common
            margins = margins / margins.std(2, keepdim=True).clamp_min(1e-12)
        ranked = margins.amin(1).unflatten(0, (-1, self.draws)).sort(dim=1, descending=True).values
        last, near = int(self.share * self.draws), self.draws // 4
        mean = ranked[:, max(0, last - near) : last + near + 1].mean(1)
        return (ranked[:, last].detach() + (mean - mean.detach())).unsqueeze(1)


def certify(
    defence: nn.Module, images: Tensor, labels: Tensor, sigma: float, draws=1000, alpha=0.001, radii=(), **options
) -> pd.DataFrame:
    """Radii of L2 balls in which no attack breaks the smoothed defence: `Smoothed` with infinitely many draws.

    A radius is too large with a probability of at most `alpha`. An image's noise depends on the seed and its id alone.
    At each of `radii` APGD attacks a twentieth of the draws, where nothing is certified and there are gradients; fresh
    draws must prove its success. The options `seed`, `ids`, `name`, `budget`, `resume` and `each` are of `evaluate`.

    Returns a row per image: image (its id), label, classes, votes_right, votes_wrong (of the wrong class with most);
    radius_right, within which the label is accepted; radius_held, within which no wrong class is; broken_at, the
    distance at which one is, or infinity. Raises UserError as `evaluate`, and ValueError for other numbers.
    """
    if not (isinstance(draws, int) and draws >= 1 and 0 < alpha < 1):
        raise ValueError(f"draws is {draws}, alpha {alpha}; a whole number >= 1 and 0 < alpha < 1 are accepted")
    smoothed, ids, votes = Smoothed(defence, sigma, max(1, draws // 20), 0.75), options.pop("ids", None), []
    attacker = Attacker(**{"name": "model", "budget": Budget(), "ball": Ball(1, "L2"), "seed": 0} | options)
    with own_settings(*[defence] * isinstance(defence, nn.Module)):
        smooth = usable_defence(defence, data := images_of(images, labels, ids))[1]
        classes, streams = decide(defence, data[:1].pixels).classes, keys(attacker.seed, "certify", data.ids).tolist()
        for i, stream in enumerate(progress(streams, f"certify {attacker.name}", "image")):
            x, generator = data[i : i + 1].pixels, torch.Generator().manual_seed(stream)
            noise = (torch.randn(len(n), *x.shape[1:], generator=generator) for n in torch.arange(draws).split(128))
            chosen = torch.cat([decide(defence, x + sigma * each).decision for each in noise])
            votes.append(torch.bincount(chosen, minlength=classes + 1))
        votes, y, level = torch.stack(votes), data.labels[:, None], alpha / (classes - 1)  # Bonferroni
        right, wrong = votes.gather(1, y)[:, 0].numpy(), votes[:, :-1].scatter(1, y, 0).amax(1).numpy()
        hits, levels = np.stack([right, draws - wrong, wrong]), np.array([[alpha], [level], [level]])
        least = np.nan_to_num(betaincinv(hits, draws - hits + 1, levels))  # Clopper & Pearson; without hits it is 0
        rows = {"image": data.ids, "label": data.labels, "classes": classes, "votes_right": right, "votes_wrong": wrong}
        rows["radius_right"], rows["radius_held"] = sigma * ndtri(least[:2]).clip(0)  # theorem 1 of Cohen et al.
        rows = pd.DataFrame(rows | {"broken_at": np.where(least[2] > 0.5, 0.0, np.inf)})
        for ball in (Ball(r, "L2") for r in sorted(radii) if smooth):
            left = np.flatnonzero(np.isinf(rows.broken_at) & (rows.radius_held < ball.eps))
            if len(left):
                run, some, budget = replace(attacker, ball=ball).run, data[left], asdict(attacker.budget.components)
                shown = run(one_margin, "L2", smoothed, some, component=0, tag="L2", nearest=True, **budget).images
                fresh = certify(defence, shown, some.labels, sigma, draws, alpha, seed=attacker.seed + 1, ids=some.ids)
                rows.loc[left, "broken_at"] = np.where(fresh.broken_at == 0, ball.distance(shown, some.pixels), np.inf)
    return rows


def certified_curve(rows: pd.DataFrame, radii) -> pd.DataFrame:
    """Shares of images per radius, from the rows of `certify`; what is certified right is held, too."""
    columns = {"right": rows.radius_right, "held": rows.radius_held.clip(rows.radius_right), "attacked": rows.broken_at}
    shares = {name: [(column > r + 1e-6).mean() for r in radii] for name, column in columns.items()}
    return pd.DataFrame({"radius": radii, "n": len(rows)} | shares)
