"""Run one stage: its notebook, by papermill, as DVC calls it.

python -m multishield.run check
python -m multishield.run training standard
"""

import contextlib
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from multishield.data.datasets import check_root
from multishield.models import clip, model_zoo, pretrained
from multishield.params import Params
from multishield.reporting import pages
from multishield.storage import paths
from multishield.storage.checkpoints import RUN, forget
from multishield.storage.errors import UserError
from multishield.storage.files import write_atomically, write_text
from multishield.storage.progress import PROGRESS_FILE

STAGES = ("dataset", "training", "alignment", "baseline", "multishield", "adaptive", "report")


def source_notebook(stage: str) -> str:
    """The file name of a stage's notebook, such as `04_baseline.ipynb`."""
    return f"{STAGES.index(stage) + 1:02d}_{stage}.ipynb"


def canonical(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook without what opening or running it changes: outputs, counts, random ids, metadata but for tags."""
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
        cell["metadata"] = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.NotebookNode(kernelspec=kernel, language_info={"name": "python"})
    return notebook


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook.

    Raises:
        UserError: the file is missing or is not a notebook.
    """
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; restore it with `git checkout -- notebooks`") from None
    except nbformat.reader.NotJSONError:
        raise UserError(f"{path} is not a notebook; restore it with `git checkout -- notebooks`") from None


def _write(notebook: nbformat.NotebookNode, path: Path) -> Path:
    return write_text(path, nbformat.writes(notebook) + "\n")


def check() -> None:
    """The first stage: params.yaml is valid, what it names exists, and notebooks are brought to canonical form.

    The other stages depend on the canonical copies: opening and running a notebook makes nothing stale.
    """
    params = Params.load()
    check_root(params.dataset)
    model_zoo.check(params)
    clip.check(params.alignment)
    for name in params.classifiers:
        pretrained.check(params.training[name], f"training.{name}")
    for stage in STAGES:
        name = source_notebook(stage)
        _write(canonical(read_notebook(paths.root() / "notebooks" / name)), paths.artifacts("check", name))


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
        with file.open() as stream:
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


def _one_line(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


def _cell_number(notebook: nbformat.NotebookNode) -> int:
    """Which code cell failed, counted from 1 as Jupyter's [1], [2], ..."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and any(o.output_type == "error" for o in cell.outputs):
            return cell.execution_count
    return 0


def execute(stage: str, classifier: str | None = None) -> Path:
    """Execute a stage's canonical notebook; write the executed copy and its page to reports/.

    Returns:
        The executed notebook.

    Raises:
        UserError: the notebook failed: which one, which cell, which error, and where the executed copy is.
    """
    name = source_notebook(stage).removesuffix(".ipynb") + (f"_{classifier}" if classifier else "")
    running = paths.state("running", f"{name}.ipynb")
    running.parent.mkdir(parents=True, exist_ok=True)
    source = paths.artifacts("check", source_notebook(stage))
    os.environ[RUN] = name
    try:
        with _forwarded_progress(name):
            papermill.execute_notebook(
                source,
                running,
                {"classifier": classifier} if classifier else {},
                kernel_name="python3",
                cwd=str(paths.root()),
                progress_bar=False,
                record_timing=False,
                coalesce_streams=True,
                # Its words about local TCP and about being stopped at the end would stand between the progress lines.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
    except PapermillExecutionError as error:
        failed = paths.state("failed", running.name)
        write_atomically(failed, lambda p: p.write_bytes(running.read_bytes()))
        what = error.evalue if error.ename == "UserError" else f"{error.ename}: {error.evalue}"
        cell = _cell_number(read_notebook(running))
        raise UserError(
            f"{source_notebook(stage)}{f' ({classifier})' if classifier else ''}, cell [{cell}]: "
            f"{_one_line(what)}\nThe executed copy is {failed.relative_to(paths.root())}"
        ) from None
    executed = read_notebook(running)
    executed.metadata.pop("papermill", None)
    for i, cell in enumerate(executed.cells):
        cell["id"] = f"cell-{i}"
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
    pages.write_notebook_page(executed, paths.reports(f"{name}.html"))
    report = _write(executed, paths.reports(f"{name}.ipynb"))
    running.unlink()
    forget(name)
    return report


def _log_cost(stage: str, classifier: str | None, seconds: float) -> None:
    """Append wall time and peak memory to an untracked file: times would make every run differ."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1 if sys.platform == "darwin" else 1024) / 1000
    log = paths.state("stages.csv")
    if not log.exists():
        write_text(log, "stage,classifier,seconds,peak_memory_gb\n")
    with log.open("a") as stream:
        stream.write(f"{stage},{classifier or ''},{seconds:.1f},{peak:.2f}\n")


def main(arguments: list[str] | None = None) -> int:
    """Entry point: `STAGE [CLASSIFIER]`. Returns the exit code."""
    stage, *rest = sys.argv[1:] if arguments is None else arguments
    started = time.monotonic()
    try:
        if stage == "check":
            check()
            return 0
        Params.load()  # fail before a kernel starts
        execute(stage, rest[0] if rest else None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on with stage {stage}", file=sys.stderr)
        return 130
    _log_cost(stage, rest[0] if rest else None, time.monotonic() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
