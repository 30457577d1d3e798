"""Run one stage as DVC calls it: its notebook, by papermill."""

import contextlib
import os
import re
import resource
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from multishield.errors import UserError
from multishield.files import write_atomically, write_json, write_text
from multishield.progress import PROGRESS_FILE
from paper import paths
from paper.naming import parameter, run_name
from paper.params import Params
from paper.pipeline import arithmetic
from paper.pipeline.notebooks import read_notebook, read_source, source_notebook, write_notebook


def run_stage(stage: str, item: str | None = None) -> None:
    """Run a stage: the check and publish in this process, every other one as its notebook."""
    if stage == "check":
        from paper.pipeline.check import check

        check()
    elif stage == "publish":
        from paper.pipeline.publish import publish

        publish()
    else:
        execute(stage, item)


def execute(stage: str, item: str | None = None) -> Path:
    """Execute a stage's notebook for a classifier or a study; returns the executed copy in artifacts/notebooks/.

    Raises:
        UserError: the notebook failed; the sentence names it, the cell, the error, and the executed copy.
    """
    import papermill  # slow to import; the check does without
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    name, canonical = run_name(stage, item), read_source(stage)
    source, running = (paths.state("running", f"{name}.{kind}.ipynb") for kind in ("source", "executed"))
    write_notebook(canonical, source)
    _own_kernel()
    arithmetic.choose(Params.load().arithmetic)
    options = {"kernel_name": "python3", "cwd": str(paths.root()), "progress_bar": False, "record_timing": False}
    # The kernel's words about local TCP and about its end would stand between the progress lines.
    options |= {"coalesce_streams": True, "extra_arguments": ["--IPKernelApp.log_level=CRITICAL"]}
    try:
        with _forwarded_progress(name):
            papermill.execute_notebook(source, running, {parameter(stage): item} if item else {}, **options)
    except DeadKernelError:
        raise UserError(
            f"{source_notebook(stage)}: its kernel was killed, most often because memory was short; the same command "
            "continues where it was"
        ) from None
    except PapermillExecutionError as error:
        raise _failure(stage, item, running, error) from None
    executed = read_notebook(running)
    executed.metadata = canonical.metadata  # the kernel's metadata would name Python's version
    for i, cell in enumerate(executed.cells):
        cell["id"] = f"cell-{i}"
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
    written = write_notebook(executed, paths.artifacts("notebooks", f"{name}.ipynb"))
    source.unlink()
    running.unlink()
    shutil.rmtree(paths.state("resume", name), ignore_errors=True)
    return written


def _failure(stage: str, item: str | None, running: Path, error) -> UserError:
    """The sentence about a failed notebook, whose executed copy is saved."""
    failed = paths.state("failed", f"{run_name(stage, item)}.ipynb")
    write_atomically(failed, lambda p: p.write_bytes(running.read_bytes()))
    cells = [cell for cell in read_notebook(running).cells if cell.cell_type == "code"]
    broken = [c.execution_count for c in cells if any(o.output_type == "error" for o in c.outputs)]
    reason = error.evalue if error.ename == "UserError" else f"{error.ename}: {error.evalue}"
    reason = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", reason).split())
    title = source_notebook(stage) + (f" ({item})" if item else "")
    copy = failed.relative_to(paths.root())
    return UserError(f"{title}, cell [{broken[0] if broken else 0}]: {reason}\nThe executed copy is {copy}")


@contextlib.contextmanager
def _forwarded_progress(name: str) -> Iterator[None]:
    """Copy the lines of the notebook's progress bars to this terminal, while the notebook itself stays quiet."""
    file = paths.state("progress", f"{name}.txt")
    write_text(file, "")
    os.environ[PROGRESS_FILE] = str(file)
    # tqdm, which other packages import in a notebook, would warn there that widgets are missing.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    stop = threading.Event()

    def copy() -> None:
        with file.open(encoding="utf-8") as stream:
            while True:
                ended = stop.is_set()
                sys.stderr.write(stream.read())
                sys.stderr.flush()
                if ended:
                    return
                stop.wait(0.5)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        file.unlink(missing_ok=True)


def _own_kernel() -> None:
    """Make "python3" the kernel of this Python, whatever Jupyter finds elsewhere under that name."""
    folder = paths.state("jupyter")
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
    write_json(folder / "kernels" / "python3" / "kernel.json", spec)
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("JUPYTER_PATH")]))


def log_cost(stage: str, item: str | None, seconds: float) -> None:
    """Append wall time and peak memory to an untracked file: times would make every run differ."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1 if sys.platform == "darwin" else 1024) / 1000
    log = paths.state("stages.csv")
    if not log.exists():
        write_text(log, "stage,classifier,seconds,peak_memory_gb\n")
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"{stage},{item or ''},{seconds:.1f},{peak:.2f}\n")
