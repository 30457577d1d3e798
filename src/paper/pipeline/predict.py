"""Use of the shield outside an evaluation: images in, a class or "rejected" out, with both models' scores."""

from json import dumps
from pathlib import Path

import torch
from torch import Tensor, nn

from multishield.errors import UserError
from multishield.records import decide
from paper import paths
from paper.data import prepare, source
from paper.params import Params
from paper.params.values import stored
from paper.stages.attacking import Attacking


def explained(shield: nn.Module, pixels: Tensor, classes: list[str]) -> list[dict]:
    """The decision of a `MultiShield` of K named classes on each image (B,3,H,W) in [0,1], and its reasons.

    Returns per image: "decision" (a class name, or "rejected"), "gap" (g, in units of cosine), "tolerance" (tau), and
    "classifier" and "clip": the scores by class name, the best first. Raises ValueError for another number of names.
    """
    decided, names = decide(shield, pixels, batch_size=32), [*classes, "rejected"]
    if len(classes) != decided.scores[0].shape[1]:
        raise ValueError(f"there are {len(classes)} class names for {decided.scores[0].shape[1]} scores")
    (logits, cosines), explained = decided.scores, []
    for k, gap, z, c in zip(decided.decision.tolist(), decided.gap.tolist(), logits, cosines, strict=True):
        by_model = {"classifier": _ranked(z.softmax(0), classes), "clip": _ranked(c, classes)}
        explained.append({"decision": names[k], "gap": gap, "tolerance": shield.tolerance} | by_model)
    return explained


def _ranked(scores: Tensor, classes: list[str]) -> dict[str, float]:
    return {classes[k]: float(scores[k]) for k in scores.argsort(descending=True, stable=True).tolist()}


def predict(images: list[Path], classifier: str | None = None) -> list[dict]:
    """Decide on image files with the shield of this project's pipeline; its first classifier is the default.

    Returns per image the dictionary of `explained`, and "image", the path as given. Raises UserError for a file that is
    no image, for an unknown classifier, and before the pipeline has run.
    """
    known = Params.load().classifiers
    name = classifier or known[0]
    if name not in known:
        raise UserError(f"the classifier is {name!r}; params.yaml has {', '.join(known)}")
    for folder in (paths.artifacts("training", name), paths.artifacts("alignment")):
        if not folder.is_dir():
            raise UserError(f"there is no {folder.relative_to(paths.root())} yet; run `make reproduce` first")
    # Images are prepared as the models saw theirs, whatever params.yaml says by now.
    sizes = vars(stored(paths.artifacts("dataset", "images.json"), size=int, resize=int | None, interpolation=str))
    pixels = torch.stack([prepare.resize_and_crop(source.read_image(path), **sizes) for path in images]).float() / 255
    s = Attacking("multishield", name)
    try:
        decisions = explained(s.shield, pixels, s.classes)
    except ValueError as error:
        given = f"dataset, training/{name} and alignment in artifacts/ do not belong together ({error})"
        raise UserError(f"{given}; remove them and run `make reproduce`") from None
    return [{"image": str(path), **decision} for path, decision in zip(images, decisions, strict=True)]


def show(images: list[Path], classifier: str | None, json: bool) -> None:
    """Print the predictions as JSON, or in a line each: the decision, each model's best class and score, the gap."""
    predictions = predict(images, classifier)
    if json:
        print(dumps(predictions, indent=1, ensure_ascii=False))
        return
    for p in predictions:
        (label, probability), (other, cosine) = (next(iter(p[model].items())) for model in ("classifier", "clip"))
        scores = f"classifier {label} {probability:.3f}, CLIP {other} {cosine:.3f}, gap {p['gap']:.4f}"
        print(f"{p['image']}: {p['decision']}  ({scores})")
