"""What a GPU brings: attack steps per second and peak memory on large networks, and verdicts beside those of the CPU.

    python benchmarks/gpu.py [NETWORK...] [--images N] [--steps N] [--device cuda]
    python benchmarks/gpu.py --verdicts CLASSIFIER...     # in a project whose pipeline has run

The networks have random weights: only speed is measured. "apgd" is the step of the baseline's package, "joint" that of
the attack on a shield of the network and the ViT-B/32 of CLIP. Steps are image-steps: a forward and a backward pass of
one image. The batch of `joint` is chosen by itself; apgd's is the number of images.
"""

import argparse
import time

import open_clip
import torch
import torchvision

from multishield.attacks.joint import joint
from multishield.attacks.threat_model import Ball, evaded
from multishield.forward import forward, freeze
from multishield.portfolio import Attacker
from multishield.shield import MultiShield
from paper.data import splits
from paper.models.classifier import Classifier
from paper.models.zero_shot import Preprocess, ZeroShotClassifier
from paper.params import Params
from paper.stages.autoattack import autoattack
from paper.stages.baseline import load_shield

EPS, CLASSES = 8 / 255, 10
MEAN, STD = [0.5] * 3, [0.25] * 3


def tower(name: str) -> ZeroShotClassifier:
    """A CLIP's image tower with random weights and texts."""
    model = open_clip.create_model(name, pretrained=None)
    config = open_clip.transform.PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
    text = torch.nn.functional.normalize(torch.randn(CLASSES, model.visual.output_dim), dim=1)
    return ZeroShotClassifier(model.visual, Preprocess(config), text)


def wide_resnet() -> torch.nn.Module:
    """WRN-28-10 as RobustBench has it."""
    from robustbench.model_zoo.architectures.wide_resnet import WideResNet  # the extra `robustbench`

    return Classifier(WideResNet(28, CLASSES, 10), MEAN, STD)


NETWORKS = {
    "ResNet-18": (32, lambda: Classifier(torchvision.models.resnet18(num_classes=CLASSES), MEAN, STD)),
    "WRN-28-10": (32, wide_resnet),
    "ViT-B/32": (224, lambda: tower("ViT-B-32")),
    "ViT-L/14": (224, lambda: tower("ViT-L-14")),
}


def measured(run, where: torch.device) -> tuple[float, float]:
    """Seconds, and gigabytes at the peak (NaN on a CPU)."""
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
        torch.cuda.synchronize(where)
    started = time.perf_counter()
    run()
    if where.type != "cuda":
        return time.perf_counter() - started, float("nan")
    torch.cuda.synchronize(where)
    return time.perf_counter() - started, torch.cuda.max_memory_allocated(where) / 1e9


def row(name: str, images: int, steps: int, where: torch.device) -> None:
    """Print the row of one network."""
    side, build = NETWORKS[name]
    torch.manual_seed(0)
    network = freeze(build()).to(where)
    shield = MultiShield(network, freeze(tower("ViT-B-32")).to(where), 0.001)
    x = torch.rand(images, 3, side, side)
    with torch.no_grad():
        y = forward(network, x.to(where)).argmax(1).cpu()
    options = {"seed": 0, "ids": torch.arange(images)}
    cells = [name, str(images)]
    for what in ("apgd", "joint"):
        passes = []

        def run(what=what, passes=passes):
            if what == "apgd":
                found = autoattack(network, x, y, eps=EPS, attacks=("apgd-ce",), **options)
            else:
                found = joint(shield, x, y, eps=EPS, targets=1, steps=steps, restarts=1, **options)
            passes.append(int((found.forwards + found.backwards).sum()) / 2)

        run()  # kernels are chosen
        seconds, memory = measured(run, where)
        cells += [f"{passes[-1] / seconds:.0f}", f"{memory:.1f}"]
    print(f"| {' | '.join(cells)} |", flush=True)


def verdicts(name: str, params: Params) -> None:
    """Print how the worst case of joint on the GPU stands to that on the CPU, image by image."""
    data, ball = splits.load_split("evaluation"), Ball(**params.threat_model.model_dump())
    shield, attacker = (
        load_shield(name, params.multishield.tolerance),
        Attacker(name, params.adaptive, ball, params.seed),
    )
    found = {}
    for where in ("cpu", "cuda"):
        shield = shield.to(where)
        found[where] = attacker.at(where, params.adaptive, ball).joint(shield, data, ())
    with torch.no_grad():
        again = evaded(forward(shield.cpu(), found["cuda"].images), data.labels)
    other = int((found["cpu"].success != found["cuda"].success).sum())
    ties = int((again != found["cuda"].success).sum())
    print(f"{name}: {other} of {len(data)} verdicts differ; decided again on the CPU {ties} of the GPU's images differ")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)}; all unless given")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--verdicts", nargs="*", default=[], metavar="CLASSIFIER")
    options = parser.parse_args()
    where = torch.device(options.device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: there is no GPU here; --device cpu measures the same on the CPU")
    for name in options.verdicts:
        verdicts(name, Params.load())
    if options.verdicts and not options.networks:
        return
    print("| network | images | apgd, steps/s | GB | joint, steps/s | GB |\n|---|---:|---:|---:|---:|---:|")
    for name in options.networks or NETWORKS:
        row(name, options.images, options.steps, where)


if __name__ == "__main__":
    main()
