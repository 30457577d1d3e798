"""Peak memory of an evaluation by the size of the parts in which it takes its images.

    python benchmarks/parts.py CLASSIFIER [--images 10000] [--megabytes 512 32]

Each size in a process of its own, with one step of every attack (those of the sanity rules too), without Square.
Verdicts say nothing here, but they must be the same ones each time. Run it in a project whose pipeline has run and that
has so many evaluation images. It prints a Markdown table.
"""

import argparse
import hashlib
import resource
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

from paper.params import Adaptive, Params
from paper.pipeline import arithmetic


def hurried(settings: Adaptive) -> Adaptive:
    """The same attacks with one step each."""
    names = ("paper", "joint", "parts", "denial")
    return settings.model_copy(update={n: getattr(settings, n).model_copy(update={"steps": 1}) for n in names})


def measure(name: str, images: int, megabytes: int) -> None:
    """Print a row: what one evaluation in parts of that size takes, of this process."""
    from multishield import evaluate, shards
    from paper.data.splits import load_split
    from paper.stages.baseline import load_shield

    params, data = Params.load(), load_split("evaluation")[:images]
    shards.AT_ONCE = megabytes * 2**20
    shield = load_shield(name, params.multishield.tolerance)
    with tempfile.TemporaryDirectory() as folder:
        ball = {"eps": params.threat_model.eps, "norm": params.threat_model.norm, "seed": params.seed}
        budget = {"settings": hurried(params.adaptive), "attacks": ("parts", "paper", "joint", "denial")}
        evaluate(shield, data.images, data.labels, ids=data.ids, save_to=folder, **ball, **budget)
        digest = hashlib.sha256((Path(folder) / "records.csv").read_bytes()).hexdigest()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024) / 1000
    print(f"| {len(data)} | {megabytes} | {len(list(shards.cut(data)))} | {peak:.2f} | {digest[:16]} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[512, 32])
    options = parser.parse_args()
    arithmetic.choose(Params.load().arithmetic)
    print("| images | MB of a part | parts | peak, GB | records, sha256 |\n|---:|---:|---:|---:|---|", flush=True)
    for size in options.megabytes:
        process = get_context("spawn").Process(target=measure, args=(options.classifier, options.images, size))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(process.exitcode)


if __name__ == "__main__":
    main()
