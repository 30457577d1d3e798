"""Run one stage: its notebook, by papermill, as DVC calls it.

python -m paper.pipeline.run check
python -m paper.pipeline.run training standard
"""

import contextlib
import os
import re
import resource
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from multishield.errors import UserError, in_words
from multishield.files import write_atomically, write_json, write_text
from multishield.progress import PROGRESS_FILE
from paper import paths
from paper.params import Params
from paper.pipeline import arithmetic
from paper.pipeline.notebooks import parameter, read_notebook, read_source, run_name, source_notebook, write_notebook


@contextlib.contextmanager
def _forwarded_progress(name: str) -> Iterator[None]:
    """Copy what the notebook's progress bars write to this terminal, while the notebook itself stays quiet."""
    file = paths.state("progress", f"{name}.txt")
    write_text(file, "")
    os.environ[PROGRESS_FILE] = str(file)
    # tqdm, which other packages import in a notebook, would warn there that widgets are missing.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    if sys.stderr.isatty():
        os.environ["MULTISHIELD_TERMINAL"] = "1"
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


def _one_line(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


def _cell_number(notebook) -> int:
    """Which code cell failed, counted from 1 as Jupyter's [1], [2], ..."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and any(o.output_type == "error" for o in cell.outputs):
            return cell.execution_count
    return 0


def execute(stage: str, item: str | None = None) -> Path:
    """Execute a stage's notebook for a classifier or a study; write the executed copy to artifacts/notebooks/.

    Returns:
        The executed notebook.

    Raises:
        UserError: the notebook failed: which one, which cell, which error, and where the executed copy is.
    """
    import papermill  # slow to import; `multishield check` and the first stage do without
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    name = run_name(stage, item)
    source, running = (paths.state("running", f"{name}.{kind}.ipynb") for kind in ("source", "executed"))
    write_notebook(read_source(stage), source)
    os.environ[paths.RUN] = name
    _own_kernel()
    arithmetic.choose(Params.load().arithmetic)
    try:
        with _forwarded_progress(name):
            papermill.execute_notebook(
                source,
                running,
                {parameter(stage): item} if item else {},
                kernel_name="python3",
                cwd=str(paths.root()),
                progress_bar=False,
                record_timing=False,
                coalesce_streams=True,
                # Its words about local TCP and about being stopped at the end would stand between the progress lines.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
    except DeadKernelError:
        raise UserError(
            f"{source_notebook(stage)}: its kernel was killed, most often for want of memory; the same command goes on "
            "where it was"
        ) from None
    except PapermillExecutionError as error:
        failed = paths.state("failed", f"{name}.ipynb")
        write_atomically(failed, lambda p: p.write_bytes(running.read_bytes()))
        what = error.evalue if error.ename == "UserError" else f"{error.ename}: {error.evalue}"
        cell = _cell_number(read_notebook(running))
        raise UserError(
            f"{source_notebook(stage)}{f' ({item})' if item else ''}, cell [{cell}]: "
            f"{_one_line(what)}\nThe executed copy is {failed.relative_to(paths.root())}"
        ) from None
    executed = read_notebook(running)
    executed.metadata = read_source(stage).metadata  # the kernel's would name Python's patch version
    for i, cell in enumerate(executed.cells):
        cell["id"] = f"cell-{i}"
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
    written = write_notebook(executed, paths.artifacts("notebooks", f"{name}.ipynb"))
    for file in (source, running):
        file.unlink()
    shutil.rmtree(paths.state("resume", name), ignore_errors=True)
    return written


def _log_cost(stage: str, item: str | None, seconds: float) -> None:
    """Append wall time and peak memory to an untracked file: times would make every run differ."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1 if sys.platform == "darwin" else 1024) / 1000
    log = paths.state("stages.csv")
    if not log.exists():
        write_text(log, "stage,classifier,seconds,peak_memory_gb\n")
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"{stage},{item or ''},{seconds:.1f},{peak:.2f}\n")


def run_stage(stage: str, item: str | None = None) -> None:
    """Run a stage: the two around the notebooks in this process, every other one as its notebook."""
    if stage == "check":
        from paper.pipeline.check import check

        check()
    elif stage == "publish":
        from paper.pipeline.publish import publish

        publish()
    else:
        execute(stage, item)


def main(arguments: list[str] | None = None) -> int:
    """Entry point: `STAGE [CLASSIFIER | STUDY]`. Returns the exit code."""
    stage, *rest = sys.argv[1:] if arguments is None else arguments
    started = time.monotonic()
    try:
        run_stage(stage, *rest)
    except (UserError, OSError) as error:
        print(f"error: {in_words(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on with stage {stage}", file=sys.stderr)
        return 130
    _log_cost(stage, rest[0] if rest else None, time.monotonic() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
