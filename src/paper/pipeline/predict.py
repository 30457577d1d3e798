"""Use of the shield outside an evaluation: images in, a class or "rejected" out, with both models' scores."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from multishield.errors import UserError
from multishield.files import read_json
from multishield.verdicts import decide
from paper import paths
from paper.data import prepare, source, splits
from paper.params import Params
from paper.stages.baseline import load_shield

REJECTED = "rejected"


def explained(shield: nn.Module, pixels: Tensor, classes: list[str]) -> list[dict]:
    """What the shield says to each image, and why.

    Args:
        shield: a `MultiShield` of K classes. pixels: (B,3,H,W) in [0,1].
        classes: K names.

    Returns:
        Per image: "decision" (a class name, or "rejected"), "gap" (g, in units of cosine), "tolerance" (tau), and
        "classifier" and "clip": both models' scores by class name, the best first (softmax of z; cosines c).
    """
    v, names = decide(shield, pixels, batch_size=32), [*classes, REJECTED]
    return [
        {
            "decision": names[decision],
            "gap": float(gap),
            "tolerance": shield.tolerance,
            "classifier": _ranked(probabilities, classes),
            "clip": _ranked(cosines, classes),
        }
        for decision, gap, probabilities, cosines in zip(
            v.decision.tolist(), v.gap, v.logits.softmax(1), v.cosines, strict=True
        )
    ]


def _ranked(scores: Tensor, classes: list[str]) -> dict[str, float]:
    return {classes[k]: float(scores[k]) for k in scores.argsort(descending=True, stable=True).tolist()}


def predict(images: list[Path], classifier: str | None = None) -> list[dict]:
    """Decide on image files with the shield of this project's pipeline.

    Args:
        images: files, brought to the data set's size as `dataset` does it.
        classifier: one of `classifiers` in params.yaml; the first unless given.

    Returns:
        Per image what `explained` returns, and "image", the path as given.

    Raises:
        UserError: no such file, not an image, no such classifier, or the pipeline has not run yet.
    """
    params = Params.load()
    name = classifier or params.classifiers[0]
    if name not in params.classifiers:
        raise UserError(f"the classifier is {name!r}; params.yaml has {', '.join(params.classifiers)}")
    for stage in (("training", name), ("alignment",)):
        if not paths.artifacts(*stage).is_dir():
            raise UserError(f"there is no {'/'.join(stage)} under artifacts yet; run `make reproduce` first")
    # As the models saw their images, whatever params.yaml says by now.
    how = read_json(paths.artifacts("dataset", "images.json"))
    fitted = [prepare.resize_and_crop(source.read_image(path), **how) for path in images]
    pixels = torch.stack(fitted).float() / 255
    shield, classes = load_shield(name, params.multishield.tolerance), splits.load_classes()
    found = explained(shield, pixels, classes)
    return [{"image": str(path), **d} for path, d in zip(images, found, strict=True)]


def as_text(predictions: list[dict]) -> str:
    """A line per image: the decision, then each model's best class with its score, and the gap."""
    return "\n".join(
        f"{p['image']}: {p['decision']}  (classifier {_best(p['classifier'])}, CLIP {_best(p['clip'])}, "
        f"gap {p['gap']:.4f})"
        for p in predictions
    )


def _best(scores: dict[str, float]) -> str:
    name = next(iter(scores))
    return f"{name} {scores[name]:.3f}"


def as_json(predictions: list[dict]) -> str:
    """All of it as JSON, with the scores of every class."""
    return json.dumps(predictions, indent=1, ensure_ascii=False)
