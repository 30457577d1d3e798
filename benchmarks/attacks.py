"""Compare `evaluate` with AutoAttack's package, and the joint attack with the paper's attack.

Run it in a project whose pipeline has run, with nothing else on the machine:

    python benchmarks/attacks.py CLASSIFIER... [--images N] [--queries N] [--shield | --user]

A classifier is one of the pipeline, or one of networks.py, without batch norm. The script prints a Markdown table.
--shield leaves out the slow first rows; --user compares a whole call of `evaluate`, and nothing else. Passes are
forwards and backwards per image: they measure work without a clock. Seconds depend on the machine, so only their ratio
means something.
"""

import argparse
import copy
import math
import time
from unittest.mock import patch

from paper.params import Params
from paper.pipeline import arithmetic

arithmetic.choose(Params.load().arithmetic)  # that of the stages; torch reads it when it is loaded

import networks
import pandas as pd
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from multishield import Budget, Undefended, evaluate
from multishield.attacks.threat_model import Ball, fooled
from multishield.budget import Square
from multishield.images import AttackedImages, Images
from multishield.portfolio import Attacker
from paper import stage
from paper.models.classifier import load_classifier
from paper.stages.autoattack import PassCounter

ATTACKS = ["apgd-ce", "apgd-t", "square"]


def timed(function):
    """The result of a function without arguments, and its seconds."""
    started = time.perf_counter()
    return function(), time.perf_counter() - started


def package(network: nn.Module, data: Images, eps: float, queries: int) -> tuple[Tensor, int, int]:
    """Attack with AutoAttack's package: which images resist (N,), and all forwards and backwards.

    It gets the network as PyTorch loads it: channels first, parameters with gradients, batch norms as they are. Layout,
    freezing and folding are the work of this project, so the comparison includes them.
    """
    network = copy.deepcopy(network).to(memory_format=torch.contiguous_format).requires_grad_(True)
    counter = PassCounter(network)
    adversary = AutoAttack(counter, attacks=ATTACKS, version="custom", norm="Linf", eps=eps, seed=0, device="cpu")
    adversary.apgd.n_restarts = 1
    adversary.apgd_targeted.n_target_classes = min(9, network(data.pixels[:1]).shape[1] - 1)
    adversary.square.n_queries = queries
    images, _ = adversary.run_standard_evaluation(data.pixels, data.labels, batch_size=128)
    with torch.no_grad():
        return ~fooled(network(images), data.labels), counter.forwards, counter.backwards


def ours(attacker: Attacker, network: nn.Module, data: Images) -> tuple[Tensor, int, int]:
    """Attack with `evaluate`'s attacks on a classifier alone; returns the same as `package`."""
    defence = Undefended(network)
    (attacked,) = attacker.components(defence, data).values()
    return counted([attacker.square_on_survivors(defence, data, attacked)])


def as_called(network: nn.Module, data: Images, eps: float) -> tuple[Tensor, int, int]:
    """A call of `evaluate` with its own budget: components, joint, Square, and the runs of its rules."""
    options = {"attacks": ("components", "joint", "square"), "verbose": False}
    result = evaluate(Undefended(network), data.images, data.labels, eps, **options)
    rows = pd.concat([result.records[result.records.scenario == "worst_case"], result.runs])  # the others are in it
    return ~result.attacked["worst_case"][:].success, int(rows.forwards.sum()), int(rows.backwards.sum())


def counted(results: list[AttackedImages]) -> tuple[Tensor, int, int]:
    """Which images the last of some attacks left, and the passes of all attacks."""
    forwards, backwards = (sum(int(getattr(r, kind).sum()) for r in results) for kind in ("forwards", "backwards"))
    return ~results[-1].success, forwards, backwards


def compare(title: str, first, second) -> None:
    """Run two attacks; print robust accuracies, passes per image, seconds and the ratio of the seconds."""
    (a, a_seconds), (b, b_seconds) = timed(first), timed(second)
    cells = [title, f"{a[0].float().mean():.1%}", f"{b[0].float().mean():.1%}"]
    cells += [f"{forwards / len(left):.0f}, {backwards / len(left):.0f}" for left, forwards, backwards in (a, b)]
    cells += [f"{a_seconds:.1f}", f"{b_seconds:.1f}", f"{a_seconds / b_seconds:.1f}"]
    print(f"| {' | '.join(cells)} |", flush=True)


def rows_of_classifier(name: str, images: int, queries: int, user: bool) -> None:
    """Print the rows of one classifier alone: against the package, and without the early stops; or a user's row."""
    if name in networks.EPOCHS:
        data, ball = networks.images("test", images), Ball(networks.EPS)
        loaded = classifier = networks.network(name)
    else:
        s = stage("adaptive", name)
        data, ball, classifier, loaded = s.data[:images], s.ball, s.shield.classifier, load_classifier(name, fold=False)
    attacker = Attacker(name, Budget(square=Square(queries=queries)), ball, 0)

    def without_stops() -> tuple[Tensor, int, int]:
        with (
            patch("multishield.attacks.apgd.HOPELESS", math.inf),
            patch("multishield.attacks.square.PATIENCE", math.inf),
        ):
            return ours(attacker, classifier, data)

    title, given = f"{name}: pyautoattack ({', '.join(ATTACKS)}), `evaluate`", (data, ball.eps, queries)
    if user:
        return compare(title, lambda: package(loaded, *given), lambda: as_called(classifier, data, ball.eps))
    title += " (components, square)"
    compare(title, lambda: package(loaded, *given), lambda: ours(attacker, classifier, data))
    compare(
        f"{name}: `evaluate` without early stops, with them", without_stops, lambda: ours(attacker, classifier, data)
    )


def rows_of_shield(name: str, images: int) -> None:
    """Print the two rows of the shield before one classifier. The joint attack includes the attack on CLIP, from whose
    images it begins; the images of the attack on the classifier are those of scenario 1."""
    s = stage("adaptive", name)
    data, attacker = s.data[:images], Attacker(name, s.params.adaptive, s.ball, s.params.seed)

    def joint() -> tuple[Tensor, int, int]:
        begun = list(attacker.components(s.shield, data, [s.unaware[: len(data)]]).values())
        return counted([*begun[1:], attacker.joint(s.shield, data, begun)])

    compare(f"{name} with shield: paper, joint", lambda: counted([attacker.paper(s.shield, data)]), joint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifiers", nargs="+")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--shield", action="store_true")
    parser.add_argument("--user", action="store_true")
    options = parser.parse_args()
    print(f"N = {options.images}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    heads = ["first, second", *(f"{head}, {way}" for head in ("robust", "passes", "s") for way in ("first", "second"))]
    print(f"| {' | '.join(heads)} | ratio |\n" + "|---" * 8 + "|")
    for name in options.classifiers:
        if not options.shield:
            rows_of_classifier(name, options.images, options.queries, options.user)
        if name not in networks.EPOCHS and not options.user:
            rows_of_shield(name, options.images)


if __name__ == "__main__":
    main()
