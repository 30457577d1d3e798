"""The command `python -m paper`, which `make` and dvc.yaml call. Each command imports only the modules it needs."""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from multishield.errors import UserError, in_words
from paper.params import Params
from paper.pipeline import arithmetic

# Command: its module in paper.pipeline, its function, its help.
COMMANDS = {
    "check": ("check", "check", "check params.yaml and the files that it names, as the first stage does"),
    "data": ("check", "make_data", "render the demo's images into data/, and download those that params.yaml names"),
    "profile": ("profiles", "use_profile", "make a preset of profiles/ the active params.yaml"),
    "results": ("results", "show", "print the result table and the report's path; compare it with the committed table"),
    "cost": ("run", "show_cost", "print wall time and peak memory of each stage here, and the shields' latency"),
    "predict": ("predict", "show", 'print a class or "rejected" for each image, with the scores of both models'),
    "verify": ("verify", "verify", "take attacked images from elsewhere into the report; they lower its numbers"),
    "audit": ("audit", "audit", "make the tables of reports/ and results/ again from the records beside them"),
    "run": ("run", "run_stage", "run one stage, as dvc.yaml does"),
}


def parser() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    parser = argparse.ArgumentParser(prog="python -m paper", description="The commands of the reproduction.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    by_name = {name: commands.add_parser(name, help=text) for name, (_, _, text) in COMMANDS.items()}
    by_name["profile"].add_argument("name")
    by_name["predict"].add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, or -: names from stdin")
    by_name["predict"].add_argument("--classifier", help="one of `classifiers` in params.yaml; by default the first")
    by_name["predict"].add_argument("--tolerance", type=float, help="by default that of params.yaml")
    by_name["predict"].add_argument("--json", action="store_true", help="a line of JSON each, with all classes' scores")
    by_name["predict"].add_argument("--exit-code", action="store_true", help="end with 3 where an image was rejected")
    by_name["verify"].add_argument("folder", type=Path, help="with CLASSIFIER/SOURCE.safetensors (images)")
    by_name["run"].add_argument("stage")
    by_name["run"].add_argument("item", nargs="?", help="the classifier or the study")
    return parser


def main() -> int:
    """Run the command of this process. Returns the exit code: 1 with one sentence on standard error after a mistake."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # names in any script, whatever the locale
    options = vars(parser().parse_args())
    module, function, _ = COMMANDS[command := options.pop("command")]
    try:
        if command in ("audit", "cost", "predict", "verify"):  # they import torch
            arithmetic.choose(Params.load().arithmetic)
        code = getattr(import_module(f"paper.pipeline.{module}"), function)(**options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit would fail to write the rest
        return 141
    except (UserError, OSError) as error:
        # A stage that fails may leave a progress bar in the line.
        print("\n" * (command == "run") + f"error: {in_words(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    return code or 0


if __name__ == "__main__":
    if not (code := main()):
        os._exit(0)  # at once: taking thousands of modules apart costs a second
    sys.exit(code)
