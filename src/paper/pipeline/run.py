"""Run one stage as DVC calls it: its notebook, by papermill."""

import errno
import hashlib
import os
import re
import resource
import shutil
import sys
import time
from importlib import import_module
from pathlib import Path

from multishield.errors import UserError, reason_of
from multishield.files import write_atomically, write_json, write_text
from multishield.progress import PROGRESS
from paper import paths
from paper.naming import run_name
from paper.params import Params
from paper.pipeline import arithmetic
from paper.pipeline.notebooks import read_notebook, source_path, write_notebook


def run_stage(stage: str, item: str | None = None) -> None:
    """Run a stage, the check and publish in this process, every other one as its notebook; log its cost."""
    started = time.monotonic()
    if stage in ("check", "publish"):
        getattr(import_module(f"paper.pipeline.{stage}"), stage)()
    else:
        execute(stage, item)
    _log_cost(stage, item, time.monotonic() - started)


def execute(stage: str, item: str | None = None) -> None:
    """Execute a stage's notebook for a classifier or a study; the executed copy goes to artifacts/notebooks/.

    Raises UserError if the notebook fails; the sentence names it, the cell, the error, and the executed copy.
    """
    import papermill  # slow to import; the check does without
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from zmq import ZMQError

    name, source = run_name(stage, item), source_path(stage)
    running = write_notebook(read_notebook(source), paths.state("running", f"{name}.ipynb"))
    code, unfinished = paths.artifacts("check", f"{name[3:]}.json"), paths.state("resume", name)
    begun = unfinished / hashlib.sha256(code.read_bytes() if code.is_file() else b"").hexdigest()
    if not begun.exists():  # results of other code or packages would be mixed with new ones
        shutil.rmtree(unfinished, ignore_errors=True)
        write_text(begun, "")
    _choose_kernel()
    arithmetic.choose(Params.load().arithmetic)
    options = {"kernel_name": "python3", "cwd": str(paths.root()), "progress_bar": False, "record_timing": False}
    # The kernel's words about local TCP and about its end would stand between the progress lines.
    options |= {"coalesce_streams": True, "extra_arguments": ["--IPKernelApp.log_level=CRITICAL"]}
    try:
        file = str(running).replace("{", "{{").replace("}", "}}")  # papermill fills braces in a path
        given = {"study" if stage == "studies" else "classifier": item} if item else {}
        papermill.execute_notebook(file, file, given, **options)
    except (DeadKernelError, RuntimeError, ZMQError, OSError) as error:
        if isinstance(error, OSError) and (error.filename or error.errno == errno.ENOSPC):
            error.filename = error.filename or str(running)
            raise
        reason = "its kernel was killed, most often because memory was short"
        if not isinstance(error, DeadKernelError):
            reason = f"its kernel did not start ({reason_of(error)}), most often for want of memory or open files"
        raise UserError(f"{source.name}: {reason}; the same command continues where it was") from None
    except PapermillExecutionError as error:
        failed = paths.state("failed", f"{name}.ipynb")
        write_atomically(failed, lambda copy: shutil.copyfile(running, copy))
        reason = error.evalue if error.ename == "UserError" else f"{error.ename}: {error.evalue}"
        reason = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", reason).split())
        given = f"{source.name}{f' ({item})' if item else ''}, cell [{error.exec_count}]: {reason}"
        raise UserError(f"{given}\nThe executed copy is {failed.relative_to(paths.root())}") from None
    write_notebook(read_notebook(running), paths.artifacts("notebooks", f"{name}.ipynb"))
    running.unlink()
    shutil.rmtree(unfinished, ignore_errors=True)


def _choose_kernel() -> None:
    """Make this Python, with this project's code and no user's settings, the kernel "python3"; a file gets stderr."""
    folder = paths.state("jupyter")
    words = f"os.open({str(folder / 'last-words.txt')!r}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)"
    code = f"import atexit, os, runpy; os.environ[{PROGRESS!r}] = str(os.dup(2)); os.dup2({words}, 2); "
    # The kernel ends at once: taking thousands of modules apart costs a second.
    code += "atexit.register(os._exit, 0); runpy.run_module('ipykernel_launcher', run_name='__main__')"
    argv = [sys.executable, "-c", code, "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
    write_json(folder / "kernels" / "python3" / "kernel.json", spec)
    for variable, path in (("JUPYTER_PATH", folder), ("PYTHONPATH", Path(__file__).parents[2])):
        os.environ[variable] = os.pathsep.join(filter(None, [str(path), os.environ.get(variable)]))
    os.environ |= dict.fromkeys(("JUPYTER_CONFIG_DIR", "IPYTHONDIR"), str(folder / "settings"))
    os.environ |= dict.fromkeys(("JUPYTER_CONFIG_PATH", "PYTHONSTARTUP"), "")
    # tqdm, which other packages import in a notebook, would warn there that widgets are missing.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"


def _log_cost(stage: str, item: str | None, seconds: float) -> None:
    """Append wall time and peak memory to an untracked file: in a tracked one they would make every run differ."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1 if sys.platform == "darwin" else 1024) / 1000
    log = paths.state("stages.csv")
    rows = log.read_text("utf-8", "replace") if log.exists() else "stage,classifier,seconds,peak_memory_gb\n"
    write_text(log, f"{rows}{stage},{item or ''},{seconds:.1f},{peak:.2f}\n")


def show_cost() -> None:
    """Print each stage's last wall time and peak memory, and the shields' latency; UserError for a damaged log."""
    import pandas as pd

    log = paths.state("stages.csv")
    if not log.exists():
        raise UserError("no stage has run here yet; run `make reproduce`")
    try:
        rows = pd.read_csv(log, keep_default_na=False)
        print(rows.groupby(["stage", "classifier"], sort=False).last().to_string())
        if paths.artifacts("report").is_dir():
            from paper.report.shields import latency
            from paper.stages.attacking import Attacking

            print(f"\nOn this machine:\n{latency(Attacking('report')).to_string(index=False)}")
    except (ValueError, KeyError) as error:
        raise UserError(f"{log} is damaged ({error}); remove it, every stage that runs writes to it again") from None
