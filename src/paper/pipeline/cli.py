"""The command `multishield`: what `make` calls around `dvc repro`. Each command imports what it needs, and no more."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from multishield.errors import UserError, in_words
from paper import paths


def check() -> None:
    """Check params.yaml and what it names."""
    from paper.pipeline.check import check

    check()


def use_profile(name: str) -> None:
    """Make a preset the active params.yaml."""
    from paper.pipeline.profiles import use_profile

    use_profile(name)


def materialise_data() -> None:
    """Render the demo's raw images into data/, which data.dvc pins, and get what the data set of params.yaml needs.

    What is there already is left alone.
    """
    from paper.data import downloads, shapes
    from paper.params import Params

    shapes.materialise(paths.root() / "data" / "shapes")
    downloads.materialise(Params.load().dataset)


def show_results() -> None:
    """Print the result table, where the report is, and how the table stands to the committed one."""
    from paper.pipeline import results

    results.show()


def show_cost() -> None:
    """Print the last wall time and peak memory of each stage on this machine."""
    import pandas as pd

    log = paths.state("stages.csv")
    if not log.exists():
        raise UserError("no stage has run here yet; run `make reproduce`")
    try:
        rows = pd.read_csv(log, keep_default_na=False)
        print(rows.groupby(["stage", "classifier"], sort=False).last().to_string())
    except (ValueError, KeyError) as error:
        raise UserError(f"{log} is damaged ({error}); remove it, every stage that runs writes to it again") from None


def show_predictions(images: list[Path], classifier: str | None, json: bool) -> None:
    """Print what the shield says to images."""
    from paper.params import Params
    from paper.pipeline import arithmetic

    arithmetic.choose(Params.load().arithmetic)
    from paper.pipeline import predict

    found = predict.predict(images, classifier)
    print(predict.as_json(found) if json else predict.as_text(found))


def parse(arguments: list[str] | None) -> Callable[[], None]:
    """What a command line asks for."""
    parser = argparse.ArgumentParser(prog="multishield", description="Multi-Shield's commands around `dvc repro`.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("data", help="render the demo's raw images into data/, download what params.yaml names")
    commands.add_parser("check", help="check params.yaml and what it names, as the first stage does")
    profile = commands.add_parser("profile", help="make a preset of profiles/ the active params.yaml")
    profile.add_argument("name")
    commands.add_parser("results", help="print the result table and the path of the report")
    commands.add_parser("cost", help="print wall time and peak memory of each stage's last run here")
    images = commands.add_parser("predict", help="a class or 'rejected' for images, with both models' scores")
    images.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    images.add_argument("--classifier", help="one of `classifiers` in params.yaml; the first unless given")
    images.add_argument("--json", action="store_true", help="the scores of every class, as JSON")
    options = parser.parse_args(arguments)
    return {
        "data": materialise_data,
        "check": check,
        "profile": lambda: use_profile(options.name),
        "results": show_results,
        "cost": show_cost,
        "predict": lambda: show_predictions(options.images, options.classifier, options.json),
    }[options.command]


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0, or 1 with one sentence on standard error."""
    for stream in (sys.stdout, sys.stderr):  # class names in any script, whatever the locale
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8")
    try:
        parse(arguments)()
    except (UserError, OSError) as error:
        print(f"error: {in_words(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0
