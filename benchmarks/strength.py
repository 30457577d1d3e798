"""How near the attack comes to the true worst case: against a reference with many times its budget.

Run it in a project whose pipeline has run, with nothing else on the machine:

    python benchmarks/strength.py CLASSIFIER... [--images N] [--rounds N] [--defences NAME...]

For each defence: what `evaluate` leaves robust (`joint` alone, and the worst case), and what is still robust when its
survivors have met the reference: from other random points, attacks on each part with all targets, then `joint` from
these and from random points, with all targets four times, for every image, whether its parts are lost or not; all of
that once per round, with another seed. Three rounds are about 20 times the passes of parts and joint together.
Thresholds are calibrated to reject 5 % of the clean validation images. Passes are forwards per image that survived.
"""

import argparse
from dataclasses import replace

import torch

from multishield.attacks.components import one_margin
from multishield.attacks.joint import joint
from multishield.attacks.threat_model import evaded, transfer
from multishield.defences import (
    ConfidenceThreshold,
    ConsistentPrediction,
    FeatureSqueezing,
    Unanimity,
    Undefended,
    calibrate,
)
from multishield.evaluation import DEFAULTS, evaluate
from multishield.portfolio import part_names
from paper.data import splits
from paper.params import Params
from paper.stages.baseline import load_shield

REJECTION = 0.05
SEED = 101  # of the reference's first round; evaluate's is that of params.yaml
# The sanity rules' runs at other radii are not looked at here.
SETTINGS = DEFAULTS.model_copy(update={"sanity": DEFAULTS.sanity.model_copy(update={"images": 1})})


def defences(shield, validation, wanted):
    """Name and defence, of those that are wanted."""
    classifier = shield.classifier
    makers = {
        "alone": lambda: Undefended(classifier),
        "shield": lambda: shield,
        "margin": lambda: calibrate(lambda t: ConfidenceThreshold(classifier, t), validation, REJECTION),
        "probability": lambda: calibrate(
            lambda t: ConfidenceThreshold(classifier, t, of="probability"), validation, REJECTION
        ),
        "squeezing": lambda: FeatureSqueezing(classifier),
        "consistency": lambda: calibrate(
            lambda t: ConsistentPrediction(classifier, leads=(max(t, 0.0), t)), validation, REJECTION, low=-1e3
        ),
        "shield with margins": lambda: Unanimity([classifier, shield.alignment], [0.5, 0.0]),
    }
    return [(name, makers[name]()) for name in wanted or makers]


def reference(defence, data, eps, rounds):
    """Which images the rounds of the reference leave, bool (N,), and the forward passes of an image that stands."""
    standing, passes = torch.ones(len(data), dtype=torch.bool), 0.0
    for seed in range(SEED, SEED + rounds):
        left = standing.nonzero()[:, 0]
        if len(left):
            standing[left], spent = one_round(defence, data[left], eps, seed)
            passes += spent
    return standing, passes


def one_round(defence, data, eps, seed):
    """The same for one round."""
    options = {"eps": eps, "seed": seed, "ids": data.ids}
    with torch.no_grad():
        count = defence.margins(defence.scores(data.pixels[:2])).shape[1]
    names = enumerate(part_names(defence, count))
    begun = [one_margin(defence, data.pixels, data.labels, part=i, tag=name, **options) for i, name in names]
    # "elsewhere": nothing is left out because a part was not broken.
    anywhere = [replace(start, broken_by=["elsewhere"] * len(data)) for start in begun]
    found = joint(defence, data.pixels, data.labels, starts=anywhere, targets=9, steps=100, **options)
    broken = found.success.clone()
    for start in begun:
        broken |= transfer(defence, start.images, data.labels, success=evaded)
    return ~broken, sum(float(result.forwards.float().mean()) for result in (*begun, found))


def row(classifier, name, defence, data, params, rounds) -> str:
    """A line of the table."""
    eps = params.threat_model.eps
    options = {"seed": params.seed, "attacks": ["parts", "paper", "joint"], "settings": SETTINGS, "ids": data.ids}
    result = evaluate(defence, data.pixels, data.labels, eps, **options)
    alone, worst = result.attacked["joint"], result.attacked["adaptive"]
    rejected = (result.records[result.records.scenario == "joint"].clean_decision == result.classes).mean()
    left = (~worst.success).nonzero()[:, 0]
    cells = [f"{rejected:.1%}", f"{(~alone.success).float().mean():.1%}", f"{len(left) / len(data):.1%}"]
    parts = [found for attack, found in result.attacked.items() if attack.startswith("on ")]
    passes = [sum(float(found.forwards[left].float().mean()) for found in chosen) for chosen in (parts, [alone])]
    if len(left):
        stands, spent = reference(defence, data[left], eps, rounds)
        cells.append(f"{int(stands.sum()) / len(data):.1%}")
        cells += [f"{passes[0]:.0f}, {passes[1]:.0f}, {spent:.0f}"]
    else:
        cells += [cells[-1], ""]
    return f"| {classifier} | {name} | {' | '.join(cells)} | {len(data)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifiers", nargs="+")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--defences", nargs="+", help="alone, shield, margin, probability, squeezing, ...; else all")
    options = parser.parse_args()
    params, data = Params.load(), splits.load_split("evaluation")[: options.images]
    validation = splits.load_split("validation").pixels
    heads = ["network", "defence", "clean rejection", "joint", "worst case", "reference"]
    print(f"| {' | '.join(heads)} | passes: parts, joint, reference | N |\n" + "|---" * 8 + "|")
    for classifier in options.classifiers:
        shield = load_shield(classifier, params.multishield.tolerance)
        for name, defence in defences(shield, validation, options.defences):
            print(row(classifier, name, defence, data, params, options.rounds), flush=True)


if __name__ == "__main__":
    main()
