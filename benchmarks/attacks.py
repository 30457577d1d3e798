"""What the attacks of `evaluate` cost against AutoAttack's package, and `joint` against the paper's attack.

Run it in a project whose pipeline has run, with nothing else on the machine:

    python benchmarks/attacks.py CLASSIFIER... [--images N] [--queries N] [--shield]

It prints a Markdown table; with --shield only the rows of the shield, which are the quick ones. Passes are forwards and
backwards per image: work without a clock. Seconds are of this machine, and only their ratio means something.
"""

import argparse
import copy
import time

import torch
from pyautoattack import AutoAttack

from multishield.attacks.threat_model import Ball, fooled
from multishield.defences import Undefended
from multishield.evaluation import DEFAULTS
from multishield.images import AttackedImages
from multishield.portfolio import Attacker
from multishield.resume import kept_in
from multishield.shards import Shards
from paper import paths
from paper.data import splits
from paper.params import Params
from paper.stages.autoattack import Counter
from paper.stages.baseline import load_shield

ATTACKS = ["apgd-ce", "apgd-t", "square"]


def timed(function):
    """Result and seconds."""
    started = time.perf_counter()
    return function(), time.perf_counter() - started


def theirs(network, data, eps, queries):
    """AutoAttack's package on the network as PyTorch loads it: channels first, parameters with gradients, batch norms
    as they are. Layout, freezing and folding are this package's own doing, and so part of the comparison."""
    network = copy.deepcopy(network).to(memory_format=torch.contiguous_format).requires_grad_(True)
    counter = Counter(network)
    adversary = AutoAttack(counter, attacks=ATTACKS, version="custom", norm="Linf", eps=eps, seed=0, device="cpu")
    adversary.apgd.n_restarts, adversary.apgd_targeted.n_target_classes = 1, 9
    adversary.square.n_queries = queries
    images, _ = adversary.run_standard_evaluation(data.pixels, data.labels, batch_size=128)
    with torch.no_grad():
        return ~fooled(network(images), data.labels), counter.forwards, counter.backwards


def ours(attacker, network, data):
    """The attacks of `evaluate` on a classifier alone, which are those of the pipeline."""
    defence = Undefended(network)
    (found,) = attacker.parts(defence, data).values()
    found = attacker.against_survivors(defence, data, found)
    return counted([found])


def counted(results: list[AttackedImages]):
    """Which images the last of some attacks has left, and the passes of all."""
    forwards, backwards = (sum(int(getattr(r, kind).sum()) for r in results) for kind in ("forwards", "backwards"))
    return ~results[-1].success, forwards, backwards


def compare(what, first, second) -> None:
    """Run two ways of the same thing; print robust accuracies, passes per image, seconds and their ratio."""
    (a, a_seconds), (b, b_seconds) = timed(first), timed(second)
    cells = [what, f"{a[0].float().mean():.1%}", f"{b[0].float().mean():.1%}"]
    cells += [f"{forwards / len(left):.0f}, {backwards / len(left):.0f}" for left, forwards, backwards in (a, b)]
    cells += [f"{a_seconds:.1f}", f"{b_seconds:.1f}", f"{a_seconds / b_seconds:.1f}"]
    print(f"| {' | '.join(cells)} |", flush=True)


def row_alone(name: str, params: Params, data: splits.Split, queries: int) -> None:
    """Print the row of one classifier."""
    shield, ball = load_shield(name, params.multishield.tolerance), Ball(**params.threat_model.model_dump())
    strong = DEFAULTS.model_copy(update={"square": DEFAULTS.square.model_copy(update={"queries": queries})})
    compare(
        f"{name}: pyautoattack ({', '.join(ATTACKS)}), `evaluate` (parts, square)",
        lambda: theirs(shield.classifier, data, ball.eps, queries),
        lambda: ours(Attacker(name, strong, ball, params.seed), shield.classifier, data),
    )


def rows_of_shield(name: str, params: Params, data: splits.Split) -> None:
    """Print the rows of the shield before one classifier."""
    shield, ball = load_shield(name, params.multishield.tolerance), Ball(**params.threat_model.model_dump())
    attacker = Attacker(name, params.adaptive, ball, params.seed)
    known = Shards(paths.artifacts("baseline", name, "attacked"))[: len(data)]

    def joint():
        """With the attack on CLIP alone that it begins from; AutoAttack's images are scenario 2's."""
        begun = list(attacker.parts(shield, data, [known]).values())
        return counted([*begun[1:], attacker.joint(shield, data, begun)])

    compare(f"{name} with shield: paper, joint", lambda: counted([attacker.paper(shield, data)]), joint)
    models, whole = passes(shield, data.pixels)
    cells = f"| | | | | {models:.1f} | {whole:.1f} | {models / whole:.3f} |"
    print(f"| {name}: its two models' passes, the shield's (ms) {cells}", flush=True)


def passes(shield, x, repeats: int = 25) -> tuple[float, float]:
    """Milliseconds of the classifier's pass and CLIP's image pass, and of the shield's: medians of repeats in turn."""
    times = {"models": [], "shield": []}
    with torch.no_grad():
        for _ in range(repeats):
            times["models"].append(timed(lambda: (shield.classifier(x), shield.alignment(x)))[1])
            times["shield"].append(timed(lambda: shield(x))[1])
    return tuple(1000 * sorted(t)[repeats // 2] for t in times.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifiers", nargs="+")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--shield", action="store_true")
    options = parser.parse_args()
    params, data = Params.load(), splits.load_split("evaluation")[: options.images]
    eps = params.threat_model.eps * 255
    print(f"N = {len(data)}, eps {eps:g}/255, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    heads = ["first, second", *(f"{head}, {way}" for head in ("robust", "passes", "s") for way in ("first", "second"))]
    print(f"| {' | '.join(heads)} | ratio |\n" + "|---" * 8 + "|")
    for name in options.classifiers:
        with kept_in(None):  # a benchmark resumes nothing
            if not options.shield:
                row_alone(name, params, data, options.queries)
            rows_of_shield(name, params, data)


if __name__ == "__main__":
    main()
