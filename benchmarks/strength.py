"""Compare the worst case of `evaluate` with two references of many times its budget, on what it has not seen.

Run it in a project whose pipeline has run, with nothing else on the machine:

    python benchmarks/strength.py NETWORK... [--images N] [--defences NAME...]

A network is a classifier of the pipeline, "convolutions" or "layers" of networks.py, or "pair", which are these two.
For each defence the table has the images that `joint` alone leaves, those of the worst case, and what each reference
leaves of these. "Other seeds" is the product's own attack again: every component with all targets, then all together.
It can only see luck. "Foreign" is another attack, `foreign`. Thresholds reject 5 % of the clean calibration images.
Passes are forwards per image that survived.
"""

import argparse
from dataclasses import replace

import networks
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multishield import Budget, Unanimity, calibrate, defences, evaluate
from multishield.attacks.threat_model import Ball, evaded, per_image
from multishield.budget import Sanity
from multishield.forward import outputs
from multishield.images import Images
from multishield.portfolio import Attacker
from paper import stage
from paper.data.datasets import open_source
from paper.data.prepare import read_split

REJECTION, SEED = 0.05, 101  # SEED of the references; that of `evaluate` is 0
BUDGET = Budget(sanity=Sanity(images=1))  # the runs for the sanity rules are of no interest here
ALL_TARGETS = replace(BUDGET.joint, targets=9)
TRIES, STEPS = 3, 200  # of the foreign attack at each wrong class


def defences_of(name: str, images: int) -> tuple[dict, Images, Ball]:
    """Functions that make the defences of a network, by name; the images, and the ball."""
    if name in ("convolutions", "layers", "pair"):
        models = [networks.network(part) for part in (["convolutions", "layers"] if name == "pair" else [name])]
        makers, validation = {"unanimity": lambda: Unanimity(models)}, networks.images("train", 500).images
        data, ball, classifier = networks.images("test", images), Ball(networks.EPS), models[0]
    else:
        s = stage("adaptive", name)
        sizes = {"size": s.params.dataset.image_size, "resize": s.params.dataset.resize}
        data = read_split(open_source(s.params.dataset, "test"), torch.arange(images), **sizes)
        validation, ball, classifier, clip = s.calibration.pixels, s.ball, s.shield.classifier, s.shield.alignment
        half = calibrate(lambda t: Unanimity([classifier, clip], [t, t / 10]), validation, 0.6)
        makers = {"shield": lambda: s.shield, "models that agree on few": lambda: half}

    def threshold(build, low: float = 0.0) -> nn.Module:
        return calibrate(build, validation, REJECTION, low=low)

    makers |= {
        "alone": lambda: defences.Undefended(classifier),
        "margin": lambda: threshold(lambda t: defences.ConfidenceThreshold(classifier, t)),
        "probability": lambda: threshold(lambda t: defences.ConfidenceThreshold(classifier, t, of="probability")),
        "squeezing": lambda: defences.FeatureSqueezing(classifier),
        "consistency": lambda: threshold(
            lambda t: defences.ConsistentPrediction(classifier, steps=1, size=0.0055, required=(max(t, 0.0), t)),
            low=-1e3,
        ),
    }
    return makers, data, ball


def other_seeds(defence: nn.Module, data: Images, ball: Ball) -> tuple[Tensor, float]:
    """The images that the product's own attack with another seed leaves, bool (N,), and the passes of each."""
    attacker = Attacker("other seeds", replace(BUDGET, joint=ALL_TARGETS), ball, SEED)
    begun = list(attacker.components(defence, data).values())
    # "elsewhere": the joint attack gives all tries to an image that counts as broken on each component.
    attacked = attacker.joint(defence, data, [replace(start, broken_by=["elsewhere"] * len(data)) for start in begun])
    broken = attacked.success.clone()
    for start in begun:
        broken |= evaded(outputs(defence, start.images), data.labels)
    return ~broken, sum(float(result.forwards.float().mean()) for result in (*begun, attacked))


def foreign(defence: nn.Module, data: Images, ball: Ball) -> tuple[Tensor, float]:
    """The same for an attack with other ideas, for L-inf: a diverse start for each try (Tashiro et al. 2020), a
    multiplier for each margin, which grows where that margin is not reached, and a ball that shrinks to eps."""
    generator, standing, spent = torch.Generator().manual_seed(SEED), torch.ones(len(data), dtype=torch.bool), 0
    classes = defence.margins(defence.scores(data.pixels[:1])).shape[2]
    for shift in list(range(1, classes)) * TRIES:
        for index in standing.nonzero()[:, 0].split(256):
            x, y = data.pixels[index], data.labels[index]
            standing[index] = ~_one_try(defence, x, y, (y + shift) % classes, ball, generator, STEPS)
            spent += len(index) * (STEPS + 10)
    return standing, spent / len(data)


def _one_try(defence, x: Tensor, y: Tensor, target: Tensor, ball: Ball, generator, steps: int) -> Tensor:
    def inside(z: Tensor, factor: float) -> Tensor:
        return replace(ball, eps=factor * ball.eps).project(z, x)

    attacked = inside(x + 2 * ball.eps * (2 * torch.rand(x.shape, generator=generator) - 1), 2)
    direction, broken, velocity = None, torch.zeros(len(x), dtype=torch.bool), torch.zeros_like(x)
    for step in range(-10, steps):
        attacked = attacked.detach().requires_grad_()
        scores = defence.scores(attacked)
        if step < 0:
            flat = torch.cat([F.normalize(one.flatten(1)) for one in scores], 1)
            direction = 2 * torch.rand(flat.shape, generator=generator) - 1 if direction is None else direction
            (gradient,) = torch.autograd.grad((direction * flat).sum(), attacked)
            attacked = inside(attacked + ball.eps / 2 * gradient.sign(), 2)
            continue
        margins = defence.margins(scores)
        missing = margins.gather(2, target.view(-1, 1, 1).expand(-1, margins.shape[1], 1))[:, :, 0]
        if step == 0:
            scale = missing.detach().abs().clamp_min(1e-6)
            weight = torch.full_like(scale, 1 / scale.shape[1])
        weight = weight * (-0.3 * missing.detach() / scale).exp().clamp(0.2, 5)
        weight = (weight / weight.sum(1, keepdim=True)).clamp_min(0.02)
        (gradient,) = torch.autograd.grad((weight * missing / scale).sum(), attacked)
        velocity = 0.75 * velocity + gradient / per_image(ball.slope(gradient), gradient)
        size, shrunk = ball.eps * (0.52 - 0.5 * step / steps), max(1.0, 2 - (step + 1) / (0.6 * steps))
        attacked = inside(attacked + size * velocity.sign(), shrunk)
        if shrunk == 1 and step % 5 == 4:
            broken |= evaded(outputs(defence, attacked.detach()), y)
    return broken | evaded(outputs(defence, attacked.detach()), y)


def row(name: str, title: str, defence: nn.Module, data: Images, ball: Ball) -> str:
    """A line of the table."""
    options = {"norm": ball.norm, "attacks": ["components", "paper", "joint"], "budget": BUDGET, "ids": data.ids}
    result = evaluate(defence, data.images, data.labels, ball.eps, **options)
    worst, joint = result.attacked["worst_case"][:], result.attacked["joint"][:]
    left = (~worst.success).nonzero()[:, 0]
    cells, passes = [f"{result.clean_rejection.value:.1%}"], [float(worst.forwards[left].float().mean())]
    cells += [f"{int((~attacked.success).sum())}" for attacked in (joint, worst)]
    for reference in (other_seeds, foreign) if len(left) else ():
        stands, spent = reference(defence, data[left], ball)
        cells.append(f"{int(stands.sum())}")
        passes.append(spent)
    cells.append(", ".join(f"{p:.0f}" for p in passes))
    return f"| {name} | {title} | {' | '.join(cells)} | {len(data)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--defences", nargs="+", help="alone, shield, unanimity, margin, ...; else all")
    options = parser.parse_args()
    heads = ["network", "defence", "clean rejection", "joint", "worst case", "other seeds", "foreign"]
    print(f"| {' | '.join(heads)} | passes: worst case, other seeds, foreign | N |\n" + "|---" * 9 + "|")
    for name in options.networks:
        makers, data, ball = defences_of(name, options.images)
        for title in options.defences or makers:
            print(row(name, title, makers[title](), data, ball), flush=True)


if __name__ == "__main__":
    main()
