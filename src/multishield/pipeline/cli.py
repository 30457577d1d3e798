"""The command `multishield`: what `make` calls around `dvc repro`."""

import argparse
import os
import re
import sys
from pathlib import Path

import pandas as pd

from multishield.data import downloads, shapes
from multishield.params import Params, read_yaml
from multishield.storage import paths
from multishield.storage.errors import UserError
from multishield.storage.files import write_text

# ${NAME} or ${NAME:-a path of the project}: where files are, on this machine.
_VARIABLE = re.compile(r"\$\{(\w+)(:-[^}]+)?\}")


def use_profile(name: str) -> None:
    """Copy `profiles/<name>.yaml` to `params.yaml`, with environment variables (or what stands for them) filled in.

    A params.yaml that no profile made is kept as `params.backup.yaml`, or with a number if that name is taken.

    Raises:
        UserError: unknown profile, a variable that is not set, or a profile that is not valid.
    """
    folder = paths.root() / "profiles"
    names = sorted(p.stem for p in folder.glob("*.yaml"))
    if name not in names:
        raise UserError(f"the profile is {name!r}; accepted are {', '.join(names)}")
    text = (folder / f"{name}.yaml").read_text()
    unset = [name for name, fallback in _VARIABLE.findall(text) if not os.environ.get(name) and not fallback]
    if unset:
        raise UserError(
            f"the profile {name} takes paths from environment variables, and {unset[0]} is not set; "
            f"run `{unset[0]}=/path make reproduce PROFILE={name}`; profiles/{name}.yaml says what it names"
        )
    text = _VARIABLE.sub(lambda m: os.path.abspath(os.environ[m[1]]) if os.environ.get(m[1]) else m[2][2:], text)
    target = paths.root() / "params.yaml"
    old = target.read_text()
    if text == old:
        return
    candidate = write_text(paths.state("params.candidate.yaml"), text)
    Params.parse(read_yaml(candidate), f"profiles/{name}.yaml")
    candidate.unlink()
    if not any(_filled_in((folder / f"{n}.yaml").read_text(), old) for n in names):
        print(f"your params.yaml was kept as {_keep(old).name}")
    write_text(target, text)


def _filled_in(profile: str, text: str) -> bool:
    """Whether a text is a profile's, whatever its variables were when it was made."""
    fixed = _VARIABLE.sub("\0", profile).split("\0")
    return re.fullmatch(".+".join(re.escape(part) for part in fixed), text) is not None


def _keep(text: str) -> Path:
    """Write the text to the first name that is free, or that holds it already."""
    path, number = paths.root() / "params.backup.yaml", 1
    while path.exists() and path.read_text() != text:
        number += 1
        path = path.with_name(f"params.backup.{number}.yaml")
    return write_text(path, text)


def materialise_data() -> None:
    """Render the demo's raw images into data/, which data.dvc pins, and get what the data set of params.yaml needs.

    What is there already is left alone.
    """
    shapes.materialise(paths.root() / "data" / "shapes")
    downloads.materialise(Params.load().dataset)


def show_results() -> None:
    """Print the result table and where the report is."""
    table = paths.reports("tables", "results.md")
    if not table.exists():
        raise UserError("there is no result table yet; run `make reproduce`")
    print(table.read_text())
    print(f"The report: {paths.reports('index.html')}")


def show_cost() -> None:
    """Print the last wall time and peak memory of each stage on this machine."""
    log = paths.state("stages.csv")
    if not log.exists():
        raise UserError("no stage has run here yet; run `make reproduce`")
    rows = pd.read_csv(log, keep_default_na=False)
    print(rows.groupby(["stage", "classifier"], sort=False).last().to_string())


def show_predictions(images: list[Path], classifier: str | None, json: bool) -> None:
    """Print what the shield says to images."""
    from multishield.pipeline import predict

    found = predict.predict(images, classifier)
    print(predict.as_json(found) if json else predict.as_text(found))


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="multishield", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("data", help="render the demo's raw images into data/, download what params.yaml names")
    commands.add_parser("check", help="check params.yaml")
    profile = commands.add_parser("profile", help="make a preset of profiles/ the active params.yaml")
    profile.add_argument("name")
    commands.add_parser("results", help="print the result table and the path of the report")
    commands.add_parser("cost", help="print wall time and peak memory of each stage's last run here")
    images = commands.add_parser("predict", help="a class or 'rejected' for images, with both models' scores")
    images.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    images.add_argument("--classifier", help="one of `classifiers` in params.yaml; the first unless given")
    images.add_argument("--json", action="store_true", help="the scores of every class, as JSON")
    options = parser.parse_args(arguments)
    actions = {
        "data": materialise_data,
        "check": Params.load,
        "profile": lambda: use_profile(options.name),
        "results": show_results,
        "cost": show_cost,
        "predict": lambda: show_predictions(options.images, options.classifier, options.json),
    }
    try:
        actions[options.command]()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0
