"""Use of the shield outside an evaluation: images in, a class or "rejected" out, with both models' scores."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from multishield.errors import UserError
from multishield.files import read_json
from multishield.records import decide
from paper import paths, stage
from paper.data import prepare, source
from paper.params import Params

REJECTED = "rejected"


def explained(shield: nn.Module, pixels: Tensor, classes: list[str]) -> list[dict]:
    """The decision of a shield on each image, and its reasons.

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
            v.decision.tolist(), v.gap, v.scores[0].softmax(1), v.scores[1], strict=True
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
    for folder in (("training", name), ("alignment",)):
        if not paths.artifacts(*folder).is_dir():
            raise UserError(f"there is no {'/'.join(folder)} under artifacts yet; run `make reproduce` first")
    # Images are prepared as the models saw theirs, whatever params.yaml says by now.
    size = read_json(paths.artifacts("dataset", "images.json"))
    pixels = torch.stack([prepare.resize_and_crop(source.read_image(path), **size) for path in images]).float() / 255
    s = stage("multishield", name)
    decisions = explained(s.shield, pixels, s.classes)
    return [{"image": str(path), **d} for path, d in zip(images, decisions, strict=True)]


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
