"""How near the attack comes to the true worst case: against a reference with many times its budget.

Run it in a project whose pipeline has run, with nothing else on the machine:

    python benchmarks/strength.py CLASSIFIER... [--images N] [--defences NAME...]

For each defence: what `evaluate` leaves robust (`joint` alone, and the worst case), and what is still robust when its
survivors have met the reference: from other random points, attacks on each part with all targets, then `joint` from
these and from random points, with all targets, for every image, with more than three times the steps. Thresholds are
calibrated to reject 5 % of the clean validation images. Passes are forwards per image: of `evaluate` over all images,
of the reference over the survivors that it was run on.
"""

import argparse
from dataclasses import replace

import torch

from multishield.attacks.joint import joint
from multishield.attacks.parts import one_margin
from multishield.attacks.threat_model import evaded, transfer
from multishield.data import splits
from multishield.defences import ConfidenceThreshold, FeatureSqueezing, Unanimity, Undefended, calibrate
from multishield.evaluation.portfolio import part_names
from multishield.evaluation.scenarios import load_shield
from multishield.evaluator import evaluate
from multishield.params import Params

REJECTION = 0.05
SEEDS = (101, 102)  # of the reference; evaluate's is that of params.yaml


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
        "shield with margins": lambda: Unanimity([classifier, shield.alignment], [0.5, 0.0]),
    }
    return [(name, makers[name]()) for name in wanted or makers]


def reference(defence, data, eps):
    """What stands after the reference, bool (N,), and its forward passes per image."""
    stands, passes = torch.ones(len(data), dtype=torch.bool), 0
    for seed in SEEDS:
        left = data[stands.nonzero()[:, 0]]
        if not len(left):
            break
        options = {"eps": eps, "seed": seed, "ids": left.ids}
        names = enumerate(part_names(defence, defence.margins(defence.scores(left.pixels[:2])).shape[1]))
        begun = [one_margin(defence, left.pixels, left.labels, part=i, tag=name, **options) for i, name in names]
        # "elsewhere": nothing is left out because a part was not broken.
        anywhere = [replace(start, broken_by=["elsewhere"] * len(left)) for start in begun]
        found = joint(defence, left.pixels, left.labels, starts=anywhere, targets=9, steps=200, **options)
        passes += sum(int(result.forwards.sum()) for result in (*begun, found))
        broken = found.success.clone()
        for start in begun:
            broken |= transfer(defence, start.images, left.labels, success=evaded)
        stands[stands.nonzero()[:, 0][broken]] = False
    return stands, passes / max(len(data), 1)


def row(classifier, name, defence, data, params) -> str:
    """A line of the table."""
    eps = params.threat_model.eps
    result = evaluate(
        defence, data.pixels, data.labels, eps, seed=params.seed, attacks=["parts", "paper", "joint"], ids=data.ids
    )
    alone, worst = result.attacked["joint"], result.attacked["adaptive"]
    rejected = (result.records[result.records.scenario == "joint"].clean_decision == result.classes).mean()
    standing = (~worst.success).nonzero()[:, 0]
    stands, reference_passes = reference(defence, data[standing], eps)
    spent = sum(float(result.attacked[n].forwards.float().mean()) for n in result.attacked if n.startswith("on "))
    spent += float(alone.forwards.float().mean())
    robust = [float((~alone.success).float().mean()), len(standing) / len(data), int(stands.sum()) / len(data)]
    cells = [classifier, name, f"{rejected:.1%}", *(f"{value:.1%}" for value in robust)]
    return f"| {' | '.join(cells)} | {spent:.0f} | {reference_passes:.0f} | {len(data)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifiers", nargs="+")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--defences", nargs="+", help="alone, shield, margin, probability, squeezing, ...; else all")
    options = parser.parse_args()
    params, data = Params.load(), splits.load_split("evaluation")[: options.images]
    validation = splits.load_split("validation").pixels
    heads = ["network", "defence", "clean rejection", "joint", "worst case", "reference"]
    print(f"| {' | '.join(heads)} | passes: parts and joint | passes: reference | N |\n" + "|---" * 9 + "|")
    for classifier in options.classifiers:
        shield = load_shield(classifier, params.multishield.tolerance)
        for name, defence in defences(shield, validation, options.defences):
            print(row(classifier, name, defence, data, params), flush=True)


if __name__ == "__main__":
    main()
