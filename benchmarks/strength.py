"""Compare the worst case of `evaluate` with a reference attack of many times its budget.

Run it in a project whose pipeline has run, with nothing else on the machine:

    python benchmarks/strength.py CLASSIFIER... [--images N] [--rounds N] [--defences NAME...]

For each defence it prints the robust accuracy under `joint` alone, under the worst case, and under the reference. Each
round of the reference has another seed and attacks the survivors of the worst case: first each component from other
random points with all targets, then all components together. It gives up no image because a component resisted.
Three rounds cost about 20 times the passes of `evaluate`. Thresholds reject 5 % of the clean validation images. Passes
are forwards per image that survived.
"""

import argparse
from dataclasses import replace

import torch
from torch import Tensor, nn

from multishield import Budget, defences, evaluate
from multishield.attacks.threat_model import Ball, evaded
from multishield.budget import Sanity
from multishield.forward import outputs
from multishield.images import Images
from multishield.portfolio import Attacker
from paper import stage

REJECTION = 0.05
SEED = 101  # of the first round of the reference; that of `evaluate` is in params.yaml
# The runs for the sanity rules are of no interest here.
BUDGET = Budget(sanity=Sanity(images=1))
ALL_TARGETS = replace(BUDGET.joint, targets=9)


def chosen_defences(shield: nn.Module, validation: Tensor, wanted: list[str] | None) -> list[tuple[str, nn.Module]]:
    """The defences of the wanted names, or all of them, each with its name."""
    classifier = shield.classifier

    def threshold(build, low: float = 0.0) -> nn.Module:
        return defences.calibrate(build, validation, REJECTION, low=low)

    makers = {
        "alone": lambda: defences.Undefended(classifier),
        "shield": lambda: shield,
        "margin": lambda: threshold(lambda t: defences.ConfidenceThreshold(classifier, t)),
        "probability": lambda: threshold(lambda t: defences.ConfidenceThreshold(classifier, t, of="probability")),
        "squeezing": lambda: defences.FeatureSqueezing(classifier),
        "consistency": lambda: threshold(
            lambda t: defences.ConsistentPrediction(classifier, required=(max(t, 0.0), t)), low=-1e3
        ),
        "shield with margins": lambda: defences.Unanimity([classifier, shield.alignment], [0.5, 0.0]),
    }
    return [(name, makers[name]()) for name in wanted or makers]


def reference(defence: nn.Module, data: Images, ball: Ball, rounds: int) -> tuple[Tensor, float]:
    """The images that all rounds leave, bool (N,), and the forward passes of an image that survives."""
    standing, passes = torch.ones(len(data), dtype=torch.bool), 0.0
    for seed in range(SEED, SEED + rounds):
        left = standing.nonzero()[:, 0]
        if len(left):
            attacker = Attacker(f"reference {seed}", replace(BUDGET, joint=ALL_TARGETS), ball, seed)
            standing[left], spent = one_round(attacker, defence, data[left])
            passes += spent
    return standing, passes


def one_round(attacker: Attacker, defence: nn.Module, data: Images) -> tuple[Tensor, float]:
    """The same for one round."""
    begun = list(attacker.components(defence, data).values())
    # "elsewhere": the joint attack gives all tries to an image that counts as broken on each component.
    anywhere = [replace(start, broken_by=["elsewhere"] * len(data)) for start in begun]
    attacked = attacker.joint(defence, data, anywhere)
    broken = attacked.success.clone()
    for start in begun:
        broken |= evaded(outputs(defence, start.images), data.labels)
    return ~broken, sum(float(result.forwards.float().mean()) for result in (*begun, attacked))


def row(name: str, title: str, defence: nn.Module, s, images: int, rounds: int) -> str:
    """A line of the table; `s` is the stage of the classifier."""
    data = s.data[:images]
    options = {"norm": s.ball.norm, "seed": s.params.seed, "attacks": ["components", "paper", "joint"]}
    result = evaluate(defence, data.pixels, data.labels, s.ball.eps, budget=BUDGET, ids=data.ids, **options)
    attacked = {attack: images[:] for attack, images in result.attacked.items()}
    alone, worst = attacked["joint"], attacked["worst_case"]
    metrics = result.metrics.set_index(["scenario", "metric"]).value
    left = (~worst.success).nonzero()[:, 0]
    components = [images for attack, images in attacked.items() if attack.startswith("on ")]
    cells = [f"{metrics['joint', 'clean_rejection']:.1%}"]
    cells += [f"{float((~a.success).float().mean()):.1%}" for a in (alone, worst)]
    if not len(left):
        return f"| {name} | {title} | {' | '.join(cells)} | {cells[-1]} | | {len(data)} |"
    stands, spent = reference(defence, data[left], s.ball, rounds)
    passes = [sum(float(a.forwards[left].float().mean()) for a in group) for group in (components, [alone])]
    cells += [f"{int(stands.sum()) / len(data):.1%}", f"{passes[0]:.0f}, {passes[1]:.0f}, {spent:.0f}"]
    return f"| {name} | {title} | {' | '.join(cells)} | {len(data)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifiers", nargs="+")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--defences", nargs="+", help="alone, shield, margin, probability, squeezing, ...; else all")
    options = parser.parse_args()
    heads = ["network", "defence", "clean rejection", "joint", "worst case", "reference"]
    print(f"| {' | '.join(heads)} | passes: components, joint, reference | N |\n" + "|---" * 8 + "|")
    for name in options.classifiers:
        s = stage("adaptive", name)
        for title, defence in chosen_defences(s.shield, s.validation.pixels, options.defences):
            print(row(name, title, defence, s, options.images, options.rounds), flush=True)


if __name__ == "__main__":
    main()
