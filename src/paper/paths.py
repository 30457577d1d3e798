"""Where things are. Every path of the pipeline is named here, relative to the project's root."""

import hashlib
import os
from pathlib import Path

from multishield.errors import UserError

by_hand: str | None = None  # the stage whose notebook is not run by the pipeline, see `paper.stage`


def root() -> Path:
    """The nearest folder upwards that holds `params.yaml` and `dvc.yaml`. Raises UserError outside a project."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise UserError(f"{here} is not inside a Multi-Shield project: no folder above it holds params.yaml and dvc.yaml")


def artifacts(stage: str, *names: str) -> Path:
    """`artifacts/<stage>/...`: the results that a stage hands to the next ones; by hand in `.multishield/by-hand`."""
    return (state("by-hand") if stage == by_hand else root()).joinpath("artifacts", stage, *names)


def reports(*names: str) -> Path:
    """`reports/...`: executed notebooks, figures and tables, kept in git."""
    return root().joinpath("reports", *names)


def state(*names: str) -> Path:
    """`.multishield/...`, untracked: unfinished work of a killed run, progress, failed notebooks, times."""
    return root().joinpath(".multishield", *names)


def candidates(classifier: str) -> Path:
    """`candidates/<classifier>/...`: attacked images from elsewhere, <source>.safetensors, see `pipeline.verify`."""
    return root() / "candidates" / classifier


def datasets(*names: str) -> Path:
    """`datasets/...`, or the folder that MULTISHIELD_DATA names: downloads, which `make clean` leaves alone."""
    return Path(os.environ.get("MULTISHIELD_DATA") or root() / "datasets").joinpath(*names)


def resolve(path: str) -> Path:
    """A path of `params.yaml`: absolute, or relative to the root. An absolute one needs no project around it."""
    try:
        given = Path(path).expanduser()
        return given if given.is_absolute() else root() / given
    except (RuntimeError, UserError) as error:  # "~nobody", or a place without a project
        raise UserError(f"the path {path!r} cannot be followed ({error}); write the whole path") from None


def existing(key: str, path: str, wanted: str = "an existing file") -> Path:
    """The file that a key of `params.yaml` names. Raises UserError if it is not a file, or may not be read."""
    file = resolve(path)
    if not file.is_file():
        raise UserError(f"{key} is {path!r}, which is not a file; give the path of {wanted}")
    if not os.access(file, os.R_OK):
        raise UserError(f"{key} is {path!r}, which this user may not read; change its permissions")
    with file.open("rb") as stream:
        if stream.read(19) == b"version https://git":
            raise UserError(f"{key} is {path!r}, a pointer of Git LFS in place of the file; run `git lfs pull` there")
    return file


def files_of(key: str, section, more=()) -> dict[str, str]:
    """The SHA-256 of each file that a section of `params.yaml` names, by its key, and of `more` files, by name."""
    names, found = ("config", "image_tower", "path", "pretrained", "weights"), {}
    files = {f"{key}.{name}": resolve(getattr(section, name, None) or "") for name in names}
    for name, file in (files | {file.name: file for file in more}).items():
        if file.is_file():
            with file.open("rb") as stream:
                found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def text_of(file: Path, remedy: str) -> str:
    """The text of a file. Raises UserError, which ends with `remedy`, for other bytes than UTF-8 and for conflicts."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file.name} is not UTF-8 text ({error}); {remedy}") from None
    if "\n<<<<<<< " in f"\n{text}":
        raise UserError(f"{file.name} holds the marks of a merge conflict, <<<<<<<; resolve it, or {remedy}")
    return text
