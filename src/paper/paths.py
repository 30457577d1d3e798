"""Where things are. Every path of the pipeline is named here, relative to the project's root."""

import os
from pathlib import Path

from multishield.errors import UserError


def root() -> Path:
    """The project's root: the nearest folder upwards that holds `params.yaml` and `dvc.yaml`.

    Jupyter starts in `notebooks/`, papermill and DVC in the root. Raises UserError outside a project.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise UserError(f"{here} is not inside a Multi-Shield project: no folder above it holds params.yaml and dvc.yaml")


def artifacts(stage: str, *names: str) -> Path:
    """`artifacts/<stage>/...`: the results that a stage hands to the next ones."""
    return root().joinpath("artifacts", stage, *names)


def reports(*names: str) -> Path:
    """`reports/...`: executed notebooks, figures and tables, kept in git."""
    return root().joinpath("reports", *names)


def state(*names: str) -> Path:
    """`.multishield/...`, untracked: unfinished work of a killed run, progress, failed notebooks, times."""
    return root().joinpath(".multishield", *names)


def datasets(*names: str) -> Path:
    """`datasets/...`, or the folder that MULTISHIELD_DATA names: downloads, which `make clean` leaves alone."""
    return Path(os.environ.get("MULTISHIELD_DATA") or root() / "datasets").joinpath(*names)


def resolve(path: str) -> Path:
    """A path of `params.yaml`: absolute, or relative to the root. An absolute one needs no project around it."""
    given = Path(path).expanduser()
    return given if given.is_absolute() else root() / given


def existing(key: str, path: str, wanted: str = "an existing file") -> Path:
    """The file that a key of `params.yaml` names. Raises UserError if it is not a file, or may not be read."""
    file = resolve(path)
    if not file.is_file():
        raise UserError(f"{key} is {path!r}, which is not a file; give the path of {wanted}")
    if not os.access(file, os.R_OK):
        raise UserError(f"{key} is {path!r}, which this user may not read; change its permissions")
    return file
