"""The command `python -m paper`: what `make` and dvc.yaml call. Each command imports the modules that it needs."""

import argparse
import sys
import time
from pathlib import Path

from multishield.errors import UserError, in_words
from paper import paths


def check(options) -> None:
    """Check params.yaml and the files that it names, as the first stage does."""
    from paper.pipeline.check import check

    check()


def data(options) -> None:
    """Render the demo's images into data/, and download the images that params.yaml names."""
    from paper.data import downloads, shapes
    from paper.params import Params

    shapes.materialise(paths.root() / "data" / "shapes")
    downloads.materialise(Params.load().dataset)


def profile(options) -> None:
    """Make a preset of profiles/ the active params.yaml."""
    from paper.pipeline.profiles import use_profile

    use_profile(options.name)


def results(options) -> None:
    """Print the result table and the path of the report, and compare the table with the committed one."""
    from paper.pipeline import results

    results.show()


def cost(options) -> None:
    """Print wall time and peak memory of each stage's last run here."""
    import pandas as pd

    log = paths.state("stages.csv")
    if not log.exists():
        raise UserError("no stage has run here yet; run `make reproduce`")
    try:
        rows = pd.read_csv(log, keep_default_na=False)
        print(rows.groupby(["stage", "classifier"], sort=False).last().to_string())
    except (ValueError, KeyError) as error:
        raise UserError(f"{log} is damaged ({error}); remove it, every stage that runs writes to it again") from None


def predict(options) -> None:
    """Print a class or "rejected" for images, with the scores of both models."""
    from paper.params import Params
    from paper.pipeline import arithmetic

    arithmetic.choose(Params.load().arithmetic)
    from paper.pipeline import predict

    predictions = predict.predict(options.images, options.classifier)
    print(predict.as_json(predictions) if options.json else predict.as_text(predictions))


def run(options) -> None:
    """Run a stage as dvc.yaml does: its notebook, or the check, or publish."""
    from paper.pipeline.run import log_cost, run_stage

    started = time.monotonic()
    run_stage(options.stage, options.item)
    log_cost(options.stage, options.item, time.monotonic() - started)


def parser() -> argparse.ArgumentParser:
    """The commands and their arguments; the help of a command is its docstring."""
    parser = argparse.ArgumentParser(prog="python -m paper", description="Commands of the reproduction.")
    commands = parser.add_subparsers(dest="command", required=True)
    by_name = {}
    for command in (check, data, profile, results, cost, predict, run):
        by_name[command.__name__] = commands.add_parser(command.__name__, help=command.__doc__)
        by_name[command.__name__].set_defaults(call=command)
    by_name["profile"].add_argument("name")
    by_name["predict"].add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    by_name["predict"].add_argument("--classifier", help="one of `classifiers` in params.yaml; by default the first")
    by_name["predict"].add_argument("--json", action="store_true", help="print the scores of every class as JSON")
    by_name["run"].add_argument("stage")
    by_name["run"].add_argument("item", nargs="?", help="the classifier or the study")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0, or 1 with one sentence on standard error."""
    for stream in (sys.stdout, sys.stderr):  # class names in any script, whatever the locale
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8")
    options = parser().parse_args(arguments)
    try:
        options.call(options)
    except (UserError, OSError) as error:
        print(f"error: {in_words(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
