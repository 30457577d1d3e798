"""What the attack engine costs against AutoAttack's package, and `joint` against the paper's attack.

Run it in a project whose pipeline has run, with nothing else on the machine:

    python benchmarks/attacks.py CLASSIFIER... [--images N] [--queries N]

It prints a Markdown table. Times are seconds on this machine; only their ratio means something.
"""

import argparse
import copy
import time

import torch
from pyautoattack import AutoAttack

from multishield.attacks.apgd import apgd
from multishield.attacks.joint import joint
from multishield.attacks.paper import paper
from multishield.attacks.square import square
from multishield.attacks.threat_model import fooled
from multishield.data import splits
from multishield.evaluation.scenarios import load_shield
from multishield.params import Params

STEPS = {"apgd-ce": "ce", "apgd-t": "dlr-targeted"}


def timed(function):
    """Result and seconds."""
    started = time.perf_counter()
    return function(), time.perf_counter() - started


def plain(network):
    """The network as PyTorch loads it, which is how one hands it to AutoAttack's package: channels first, parameters
    with gradients. Layout, freezing and folding are this engine's own doing, and so part of the comparison."""
    return copy.deepcopy(network).to(memory_format=torch.contiguous_format).requires_grad_(True)


def theirs(network, x, y, eps, attacks, queries):
    """AutoAttack's package: the images that are left, attack after attack."""
    network = plain(network)
    adversary = AutoAttack(network, attacks=attacks, version="custom", norm="Linf", eps=eps, seed=0, device="cpu")
    adversary.apgd.n_restarts, adversary.apgd_targeted.n_target_classes = 1, 9
    adversary.square.n_queries = queries
    images, _ = adversary.run_standard_evaluation(x, y, batch_size=128)
    with torch.no_grad():
        return ~fooled(network(images), y)


def ours(network, x, y, eps, attacks, queries):
    """The same attacks in the same order on this package's engine, as the stages run it."""
    robust = torch.ones(len(x), dtype=torch.bool)
    for name in attacks:
        left = robust.nonzero()[:, 0]
        if not len(left):
            break
        options = {"eps": eps, "seed": 0, "ids": left}
        if name == "square":
            result = square(network, x[left], y[left], queries=queries, **options)
        else:
            result = apgd(network, x[left], y[left], loss=STEPS[name], **options)
        robust[left[result.success]] = False
    return robust


def compare(what, first, second) -> None:
    """Run two ways of the same thing; print robust accuracies, seconds and their ratio."""
    (a, a_seconds), (b, b_seconds) = timed(first), timed(second)
    print(
        f"| {what} | {a.float().mean():.1%} | {b.float().mean():.1%} | {a_seconds:.1f} | {b_seconds:.1f} | "
        f"{a_seconds / b_seconds:.1f} |",
        flush=True,
    )


def passes(shield, x, repeats: int = 25) -> tuple[float, float]:
    """Milliseconds of the classifier's pass and CLIP's image pass, and of the shield's: medians of repeats in turn."""
    times = {"models": [], "shield": []}
    with torch.no_grad():
        for _ in range(repeats):
            times["models"].append(timed(lambda: (shield.classifier(x), shield.alignment(x)))[1])
            times["shield"].append(timed(lambda: shield(x))[1])
    return tuple(1000 * sorted(t)[repeats // 2] for t in times.values())


def rows_of(name: str, params: Params, data: splits.Split, queries: int) -> None:
    """Print the rows of one classifier."""
    x, y, eps = data.pixels, data.labels, params.threat_model.eps
    shield = load_shield(name, params.multishield.tolerance)
    for attacks in (["apgd-ce"], ["apgd-ce", "apgd-t", "square"]):
        compare(
            f"{name}: pyautoattack, ours ({', '.join(attacks)})",
            lambda: theirs(shield.classifier, x, y, eps, attacks, queries),  # noqa: B023 - called at once
            lambda: ours(shield.classifier, x, y, eps, attacks, queries),  # noqa: B023
        )
    options = {"eps": eps, "seed": 0, "ids": data.ids}
    reference = params.adaptive.paper.model_dump()
    for targets, steps in ((params.adaptive.joint.targets, params.adaptive.joint.steps), (2, 40)):
        compare(
            f"{name} with shield: paper (2 x {reference['steps']} steps), joint ({targets} x {steps})",
            lambda: ~paper(shield, x, y, **reference, **options).success,
            lambda t=targets, s=steps: ~joint(shield, x, y, targets=t, steps=s, **options).success,
        )
    models, whole = passes(shield, x)
    ratio = f"{models:.1f} | {whole:.1f} | {models / whole:.3f}"
    print(f"| {name}: its two models' passes, the shield's (ms) | | | {ratio} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifiers", nargs="+")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--queries", type=int, default=5000)
    options = parser.parse_args()
    params, data = Params.load(), splits.load_split("evaluation")[: options.images]
    eps = params.threat_model.eps * 255
    print(f"N = {len(data)}, eps {eps:g}/255, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| first, second | robust, first | robust, second | s, first | s, second | ratio |\n" + "|---" * 6 + "|")
    for name in options.classifiers:
        rows_of(name, params, data, options.queries)


if __name__ == "__main__":
    main()
