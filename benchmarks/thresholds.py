"""How strong one attack is that serves all thresholds on a classifier's logit margin, by its rule and its steps.

    python benchmarks/thresholds.py CLASSIFIER

Each attack aims at the threshold of the largest wanted rejection in params.yaml; its images and the baseline's are
shown to all thresholds. Run it in a project whose pipeline has run.
"""

import argparse
from functools import partial

import torch

from multishield.attacks.components import one_margin
from multishield.attacks.joint import joint
from multishield.attacks.threat_model import evaded, transfer
from multishield.defences import ConfidenceThreshold, calibrate
from multishield.shards import Shards
from paper import paths
from paper.data.splits import load_split
from paper.models.classifier import load_classifier
from paper.params import Params


def attacks(baseline, lost):
    """What is said of each attack, the images that it is made on, and the attack."""
    apgd = partial(one_margin, part=0, tag="apgd", nearest=True)
    start = {"starts": [baseline], "long": 1, "rounds": 0, "nearest": True}
    everything = torch.arange(len(lost))
    yield "joint's rule, 2 targets, 20 steps", everything, partial(joint, targets=2, steps=20, **start)
    yield "joint's rule, 1 target, 60 steps", everything, partial(joint, targets=1, steps=60, **start)
    yield "APGD, 3 targets, 40 steps", everything, partial(apgd, targets=3, steps=40)
    yield "the same, on what the classifier has lost", lost.nonzero()[:, 0], partial(apgd, targets=3, steps=40)
    yield "APGD, 3 targets, 100 steps", everything, partial(apgd, targets=3, steps=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier")
    name, params = parser.parse_args().classifier, Params.load()
    classifier, data, clean = load_classifier(name), load_split("evaluation"), load_split("validation").pixels
    wanted = sorted(params.comparison.rejection)
    defences = [calibrate(lambda t: ConfidenceThreshold(classifier, t), clean, share) for share in wanted]
    baseline = Shards(paths.artifacts("baseline", name, "attacked"))[:]
    print(f"| attack | robust, % at {', '.join(f'{100 * w:g}' for w in wanted)} % | passes |\n|---|---|---:|")
    for text, at, attack in attacks(baseline, baseline.success):
        ball = {"eps": params.threat_model.eps, "norm": params.threat_model.norm, "seed": params.seed}
        found = attack(defences[-1], data.pixels[at], data.labels[at], ids=data.ids[at], **ball)
        images = data.pixels.index_copy(0, at, found.images)
        robust = []
        for defence in defences:
            broken = transfer(defence, images, data.labels, success=evaded)
            broken |= transfer(defence, baseline.images, data.labels, success=evaded)
            robust.append(f"{100 * float((~broken).float().mean()):.1f}")
        print(f"| {text} | {', '.join(robust)} | {int(found.forwards.sum()) / len(data):.0f} |", flush=True)


if __name__ == "__main__":
    main()
