"""Attacked images from elsewhere: where they break an image that our attacks left, the report's number falls."""

import shutil
import subprocess
from functools import partial
from pathlib import Path

from multishield.errors import UserError
from multishield.files import write_atomically
from multishield.inputs import candidates_of
from paper import paths
from paper.params import Params
from paper.stages.adaptive import Stage, read


def verify(folder: Path) -> None:
    """Take the images of FOLDER/<classifier>/<source>.safetensors into candidates/, and bring the report up to date.

    A file holds "images": an attacked image (N,C,H,W) for each evaluation image. Raises UserError, before anything is
    kept, for images that `evaluate` would refuse. The report names the source of each break.
    """
    known, files = Params.load().classifiers, sorted(folder.glob("*/*.safetensors"))
    if not files or {file.parent.name for file in files} - set(known):
        given = f"{folder} holds {', '.join(str(file.relative_to(folder)) for file in files) or 'no attacked images'}"
        raise UserError(f"{given}; accepted are CLASSIFIER/SOURCE.safetensors, for the classifiers {', '.join(known)}")
    for file in files:
        s = Stage("adaptive", file.parent.name)
        candidates_of(read([file]), s.data, s.ball)
    for file in files:
        write_atomically(paths.candidates(file.parent.name) / file.name, partial(shutil.copyfile, file))
    if subprocess.run(["dvc", "repro"], cwd=paths.root()).returncode:
        raise UserError("the images are kept in candidates/, but a stage failed; mend it, and run `dvc repro`")
