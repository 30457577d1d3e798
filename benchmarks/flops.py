"""What the profiles cost on a GPU, estimated from measured arithmetic.

Measured: floating-point operations of one forward pass, counted by torch on the real architecture (random weights), and
what a pass keeps for the gradient. Assumed: PASSES below, that the published robust accuracy holds (30 % where none is
published), and a GPU that sustains TFLOPS in float32. Of several GPUs each attack keeps BUSY of the time busy, and the
baseline's batches go to one GPU each. Comparison and studies are not counted. An estimate, not a measurement:

    python benchmarks/flops.py [PROFILE...]
"""

import argparse
import math
from pathlib import Path

import open_clip
import torch
from torch.utils.flop_counter import FlopCounterMode

from multishield.attacks.gradient_model import bytes_per_image
from paper.models import classifier, model_zoo, pretrained
from paper.models.clip import Clip
from paper.models.zero_shot import Preprocess, ZeroShotClassifier
from paper.params import Params, read_yaml

TFLOPS = 20
GPUS, BUSY = 8, 0.9  # benchmarks/scaling.py: 64 workers, on a clock that is simulated, were busy 92 % of the ideal time
# A step is a forward and a backward pass, which costs two forwards. AutoAttack on an image that resists: apgd-ce 100
# steps, apgd-t and fab-t 9 x 100 each, square 5,000 queries; one that breaks leaves after about 100 steps.
RESISTS, BREAKS = 3 * (100 + 900 + 900) + 5000, 3 * 100
CLASSES = {"stl10": 10, "caltech101": 101, "food101": 101, "pets": 37, "eurosat": 10, "pathmnist": 9}
# Training images, validation images among them; of 80 % where the data set has no split of its own.
TRAINING = {"stl10": 5000, "caltech101": 6941, "food101": 75750, "pets": 3680, "eurosat": 21600, "pathmnist": 89996}
# hf-hub: names whose architecture open_clip knows under another one.
KNOWN = {"hf-hub:UCSC-VLAA/ViT-L-14-CLIPA-datacomp1B": "ViT-L-14-CLIPA"}


def flops(module, side: int) -> float:
    """Floating-point operations of one image's forward pass."""
    with FlopCounterMode(display=False) as counter:
        # With a gradient: without one, attention takes a fused path that is not counted.
        module(torch.rand(1, 3, side, side, requires_grad=True))
    return counter.get_total_flops()


def kept(module, side: int) -> float:
    """Megabytes that a pass keeps for the gradient, per image."""
    return bytes_per_image(module, torch.rand(1, 3, side, side)) / 1e6


def network(params: Params, name: str, classes: int):
    """The classifier with random weights, as the pipeline would build it."""
    description = pretrained.describe(params.training[name])
    built = pretrained.architecture(description, classes)
    return classifier.freeze(classifier.Classifier(built, [0.0] * 3, [1.0] * 3))


def alignment(params: Params) -> ZeroShotClassifier:
    """The image tower with random weights and its preprocessing."""
    model = open_clip.create_model(KNOWN.get(params.alignment.model, params.alignment.model), pretrained=None)
    clip = Clip(model, None, open_clip.transform.PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)))
    text = torch.eye(model.visual.output_dim)[:2]
    return classifier.freeze(ZeroShotClassifier(model.visual, Preprocess(clip.preprocessing), text))


def robust_share(params: Params, name: str) -> float:
    described = params.training[name]
    if described.source == "catalogue":
        return model_zoo.find(name, described.name).autoattack / 100
    return 0.3 if getattr(described, "method", "standard") != "standard" else 0.0


def hours(params: Params, share: float, classifier: float, clip: float) -> tuple[float, float]:
    """Hours of the baseline, and of scenario 3, for one classifier; `classifier` and `clip` are FLOPs per forward."""
    n, a = params.dataset.evaluate, params.adaptive
    baseline = n * classifier * (share * RESISTS + (1 - share) * BREAKS)
    both = classifier + clip
    joint = 3 * a.joint.targets * a.joint.steps * a.joint.restarts
    # Images that resist go through every step; the others leave after a tenth of them or so.
    white = (n * (share + 0.1 * (1 - share)) + 4 * a.sanity.images) * (joint + 3 * 2 * a.paper.steps) * both
    black = n * share * a.square.queries * both
    alone = n * 3 * (1 + a.parts.targets) * a.parts.steps * clip
    return baseline / TFLOPS / 3.6e15, (white + black + alone) / TFLOPS / 3.6e15


def on_several(params: Params, baseline: float, adaptive: float) -> float:
    """The same hours on GPUS GPUs."""
    batches = math.ceil(params.dataset.evaluate / params.baseline.batch_size)
    return baseline * math.ceil(batches / GPUS) / batches + adaptive / GPUS / BUSY


def disk(params: Params, weights: float) -> float:
    """Gigabytes: splits in bytes, five sets of attacked images per classifier in float32, `weights` bytes of networks;
    all of it once more in DVC's cache."""
    data = params.dataset
    pixels = 3 * data.image_size**2
    training = TRAINING[data.name] if data.train is None else data.train + data.validation
    attacked = 5 * len(params.classifiers) * data.evaluate * pixels * 4
    return 2 * ((training + data.evaluate) * pixels + attacked + weights) / 1e9


def rows_of(profile: Path) -> None:
    """Print a row per classifier, and the profile's sum."""
    params = Params.parse(read_yaml(profile), profile.name)
    side, total, several, weights = params.dataset.image_size, 0.0, 0.0, 0
    tower = alignment(params)
    clip, clip_kept = flops(tower, side), kept(tower, side)
    for name in params.classifiers:
        classes = CLASSES.get(params.dataset.name) or model_zoo.CLASSES[params.dataset.name]
        model = network(params, name, classes)
        each, memory = flops(model, side), kept(model, side)
        first, third = hours(params, robust_share(params, name), each, clip)
        total += first + third
        several += on_several(params, first, third)
        weights += sum(p.nbytes for p in model.parameters())
        # Gradients flow back while what was kept is still there: twice.
        batch = 2 * params.baseline.batch_size * memory / 1e3
        figures = f"{each / 1e9:.1f} | {clip / 1e9:.1f} | {memory + clip_kept:.0f} | {batch:.0f}"
        print(f"| {profile.stem} | {name} | {figures} | {first:.1f} | {third:.1f} | |", flush=True)
        del model
    sums = f"{total:.0f} in all, {several:.1f} on {GPUS} GPUs | {disk(params, weights):.0f}"
    print(f"| {profile.stem} | all | | | | | | {sums} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", nargs="*")
    folder = Path(__file__).parent.parent / "profiles"
    names = parser.parse_args().profiles or (folder / "paper.list").read_text().split("\n")
    columns = ["GFLOPs, classifier", "GFLOPs, CLIP", "MB per image", "baseline, GB", "baseline, h", "adaptive, h"]
    print("| profile | classifier | " + " | ".join([*columns, "disk, GB"]) + " |")
    print("|---|---|" + "---:|" * (len(columns) + 1))
    for name in names:
        if name and not name.startswith("#"):
            rows_of(folder / f"{name}.yaml")


if __name__ == "__main__":
    main()
