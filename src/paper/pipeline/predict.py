"""Use of the shield outside an evaluation: images in, a class or "rejected" out, with both models' scores."""

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from json import dumps
from pathlib import Path

import torch
from torch import Tensor, nn

from multishield.errors import UserError
from multishield.records import decide
from paper import paths
from paper.data import prepare, source
from paper.data.datasets import SUFFIXES, natural
from paper.params import Params
from paper.params.values import stored
from paper.stages.attacking import Attacking

KINDS = ("classifier_probability", "clip_cosine")  # the kinds of scores, in the order of the models


def explained(shield: nn.Module, pixels: Tensor, classes: list[str]) -> list[dict]:
    """The decision of a `MultiShield` of K named classes on each image (B,3,H,W) in [0,1], and its reasons.

    Returns per image "decision", "rejected", "gap", "tolerance" (both in units of cosine), and by class name, the best
    first, "classifier_probability" (softmax of the logits) and "clip_cosine". Raises UserError for another K.
    """
    decided, explained = decide(shield, pixels), []
    if len(classes) != decided.classes:
        given = f"artifacts/ has {len(classes)} class names and models of {decided.classes} classes"
        raise UserError(f"{given}, which do not belong together; remove its folders and run `make reproduce`")
    decisions = zip(decided.names(classes), decided.decision == len(classes), decided.gap, *decided.scores, strict=True)
    for name, rejected, gap, *scores in decisions:
        why = {"rejected": bool(rejected), "gap": float(gap), "tolerance": shield.tolerance}
        for kind, values in zip(KINDS, (scores[0].softmax(0), scores[1]), strict=True):
            order = values.argsort(descending=True, stable=True).tolist()
            why[kind] = {classes[j]: float(values[j]) for j in order}
        explained.append({"decision": name} | why)
    return explained


def files_of(images: Iterable[str]) -> Iterator[str]:
    """The files: a folder stands for its images in natural order, and "-" for the lines of standard input."""
    for name in images:
        if name == "-":
            sys.stdin.reconfigure(errors="surrogateescape")  # a file's name may be no UTF-8 text
            yield from (line.rstrip("\n") for line in sys.stdin)
        elif Path(name).is_dir():
            found = [path for path in Path(name).iterdir() if path.suffix.lower() in SUFFIXES]
            if not found:
                raise UserError(f"the folder {name} holds no image; accepted are {', '.join(SUFFIXES)}")
            yield from map(str, sorted(found, key=lambda path: natural(path.name)))
        else:
            yield name


def predict(images: Iterable[str], classifier: str | None = None, tolerance: float | None = None) -> Iterator[dict]:
    """Decide on `files_of` images with the shield of this project's pipeline; its first classifier is the default.

    Yields per image "image", its path as given, and the dictionary of `explained`, or "error" for a file that is no
    image. Raises UserError for an unknown classifier or tolerance, and before the pipeline has run.
    """
    known = Params.load().classifiers
    name = classifier or known[0]
    if name not in known:
        raise UserError(f"the classifier is {name!r}; params.yaml has {', '.join(known)}")
    if tolerance is not None and not 0 <= tolerance < float("inf"):
        raise UserError(f"the tolerance is {tolerance}; a finite number of at least 0 is accepted")
    for folder in (paths.artifacts("training", name), paths.artifacts("alignment")):
        if not folder.is_dir():
            raise UserError(f"there is no {folder.relative_to(paths.root())} yet; run `make reproduce` first")
    # Images are prepared as the models saw theirs, whatever params.yaml says by now.
    sizes = vars(stored(paths.artifacts("dataset", "images.json"), size=int, resize=int | None, interpolation=str))
    s, files = Attacking("multishield", name), files_of(images)
    s.shield.tolerance = s.shield.tolerance if tolerance is None else tolerance
    # A CPU takes as long for one image as for 16. But who pipes names in waits for each.
    while batch := list(islice(files, 1 if "-" in images else 16)):
        read: list[Tensor | str] = []
        for path in batch:
            try:
                read.append(prepare.resize_and_crop(source.read_image(path), **sizes).float() / 255)
            except UserError as error:
                read.append(str(error))
        pixels = [image for image in read if isinstance(image, Tensor)]
        decisions = iter(explained(s.shield, torch.stack(pixels), s.classes) if pixels else ())
        for path, image in zip(batch, read, strict=True):
            yield {"image": path} | (next(decisions) if isinstance(image, Tensor) else {"error": image})


def show(images: list[str], classifier: str | None, tolerance: float | None, json: bool, exit_code: bool) -> int:
    """Print each prediction at once, as JSON or in words. Returns the exit code: 1 where a file could not be read; 3
    where an image was rejected, if `exit_code` asks for that."""
    code = 0
    for p in predict(images, classifier, tolerance):
        code = 1 if "error" in p else code or 3 * (exit_code and p["rejected"])
        if json:
            print(dumps(p, ensure_ascii=False), flush=True)
        elif "error" in p:
            print(f"error: {p['error']}", file=sys.stderr, flush=True)
        else:
            (label, probability), (other, cosine) = (next(iter(p[kind].items())) for kind in KINDS)
            scores = f"classifier: {label}, probability {probability:.3f}; CLIP: {other}, cosine {cosine:.3f}"
            print(f"{p['image']}: {p['decision']}  ({scores}; gap {p['gap']:.4f})", flush=True)
    return code
