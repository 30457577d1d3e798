"""What each attack leaves robust alone, and all of them together.

    python benchmarks/portfolio.py CLASSIFIER... [--queries N]

Run it in a project whose pipeline has run: `paper`, `joint` and the transferred images of scenario 2 are the stored
ones; Square, which the pipeline only sends against survivors, is run here on every image. It prints a Markdown table
with 95 % Wilson intervals; verdicts are the shield's own, on the images.
"""

import argparse

import torch
from tqdm import tqdm

from multishield.attacks.loop.result import AttackedImages
from multishield.attacks.threat_model import evaded, transfer
from multishield.data import splits
from multishield.evaluation.records import wilson
from multishield.evaluation.scenarios import load_shield, portfolio
from multishield.evaluation.verdicts import decide
from multishield.params import Params
from multishield.params.sections import SquareAttack
from multishield.storage.paths import artifacts


def square_on_all(shield, data, params: Params, queries: int) -> torch.Tensor:
    """Square's images (N,3,H,W)."""
    adaptive = params.adaptive.model_copy(update={"square": SquareAttack(queries=queries)})
    with tqdm(total=len(data), desc="square", unit="image", mininterval=20) as bar:
        return portfolio(adaptive)["square"](
            shield,
            data.pixels,
            data.labels,
            eps=params.threat_model.eps,
            seed=params.seed,
            ids=data.ids,
            watch=lambda done, *_: bar.update(len(done)),
        ).images


def ratio(hits: torch.Tensor) -> str:
    """Per cent with its interval."""
    low, high = wilson(int(hits.sum()), len(hits))
    return f"{100 * hits.float().mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def row(name: str, params: Params, data, queries: int) -> str:
    """One classifier's line of the table."""
    shield = load_shield(name, params.multishield.tolerance)
    clean = decide(shield, data.pixels).decision
    images = {
        a: AttackedImages.load(artifacts("adaptive", name, f"{a}.safetensors")).images for a in ("paper", "joint")
    }
    images["square"] = square_on_all(shield, data, params, queries)
    images["transfer"] = AttackedImages.load(artifacts("baseline", name, "attacked.safetensors")).images
    robust = [~transfer(shield, c, data.labels, success=evaded) for c in images.values()]
    cells = [clean == data.labels, clean == len(splits.load_classes()), *robust, torch.stack(robust).all(0)]
    return f"| {name} | " + " | ".join(ratio(c) for c in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifiers", nargs="+")
    parser.add_argument("--queries", type=int, default=1000)
    options = parser.parse_args()
    params, data = Params.load(), splits.load_split("evaluation")
    print(f"N = {len(data)}, eps {255 * params.threat_model.eps:g}/255, Square with {options.queries} queries\n")
    print("| shield on | clean accuracy | clean rejection | paper | joint | square | transfer | all |")
    print("|---|" + "---:|" * 7)
    for name in options.classifiers:
        print(row(name, params, data, options.queries), flush=True)


if __name__ == "__main__":
    main()
