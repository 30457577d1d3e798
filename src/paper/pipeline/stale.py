"""What makes a stage stale: the modules that its notebook imports, and everything that these import.

A module counts by its code, without comments and docstrings. Drawing (`paper.report`) counts for the report alone.
DVC compares the values of parameters itself; their defaults are code of the modules.
"""

import ast
import hashlib
import re
from functools import cache
from importlib.metadata import packages_distributions, version
from itertools import groupby
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

import multishield
from multishield.errors import UserError
from paper import paths
from paper.naming import run_name
from paper.params import Params
from paper.pipeline.notebooks import code_cells

SOURCE = Path(__file__).parents[2]
OWN_MODULE = re.compile(r'"([A-Za-z_][\w.]*):[A-Za-z_]\w*"')


def fingerprint_of(stage: str, item: str | None, notebook: NotebookNode, params: Params) -> dict:
    """Everything that a run of a stage depends on, beside its data and the parameters that dvc.yaml names.

    The difference of two such dictionaries names what has changed. "modules" and "own" (the user's modules) hold a
    hash by module, "packages" a version by package, "files" a hash by the key that names a file which the stage loads.
    """
    code = code_of(notebook, run_name(stage), item)
    # `stage("adaptive")` in a notebook imports `paper.stages.adaptive`; the arithmetic is chosen before it.
    roots = {*_imports(code), f"paper.stages.{stage}", "paper.pipeline.arithmetic"}
    modules = {module: _text(SOURCE, module) for module in _closure(roots, drawing=stage == "report")}
    classifiers = [item] if item in params.training else params.classifiers
    used = params.model_copy(update={"training": {name: params.training[name] for name in classifiers}})
    own = {module: _text(paths.root(), module) for module in sorted(set(OWN_MODULE.findall(used.model_dump_json())))}
    imported = set().union(*map(_imports, (code, *modules.values(), *own.values())))
    # This project is in `modules`. Ray is left out: workers change no number.
    packages = {d for name in imported for d in _distributions_of().get(name, ())} - {"multishield", "ray"}
    loaded = {"training": params.training.get(item), "alignment": params.alignment}.get(stage)
    candidates = paths.candidates(item).glob("*") if stage == "adaptive" else ()
    return {
        "arithmetic": params.arithmetic,
        "files": paths.files_of(stage, loaded, candidates),
        "modules": {module: code_hash(text) for module, text in modules.items()},
        "notebook": code_hash(code),
        "own": {module: code_hash(text) for module, text in own.items()},
        "packages": {package: version(package) for package in sorted(packages)},
    }


def code_of(notebook: NotebookNode, name: str, item: str | None = None) -> str:
    """The code of a notebook, magics as calls. Raises UserError for no Python, or no place for the item of the run."""
    codes = [TransformerManager().transform_cell(cell.source) for cell in code_cells(notebook)]
    for number, code in enumerate(codes, 1):
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError) as error:
            raise UserError(f"{name}.ipynb, code cell {number} is not Python ({error}); correct it") from None
    if item and not any("parameters" in cell.metadata.get("tags", []) for cell in code_cells(notebook)):
        raise UserError(f"{name}.ipynb has no code cell with the tag parameters; give it to the cell of the default")
    return "\n".join(codes)


@cache
def code_hash(code: str) -> str:
    """The hash of Python code without comments, docstrings and layout; Pythons 3.11 to 3.13 give the same."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
        if isinstance(node, ast.JoinedStr):  # Python 3.12 splits the text of an f-string at {{, and adds empty texts
            pieces = groupby(node.values, lambda value: isinstance(value, ast.Constant))
            values = ["".join(v.value for v in piece) if is_text else list(piece) for is_text, piece in pieces]
            node.values = [value for value in values if value]
    return hashlib.sha256(_plain(tree).encode()).hexdigest()[:12]


def _plain(node) -> str:
    """A syntax tree as text. `ast.dump` would name the empty fields, too, and each Python knows other ones."""
    if isinstance(node, ast.AST):
        fields = [f"{name}={_plain(value)}" for name, value in ast.iter_fields(node) if value not in (None, [])]
        return f"{type(node).__name__}({', '.join(fields)})"
    return f"[{', '.join(map(_plain, node))}]" if isinstance(node, list) else ascii(node)


def _text(folder: Path, module: str) -> str:
    """The code of a module, or of a package's `__init__`, in a folder; "" where there is none."""
    file = folder.joinpath(*module.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _closure(roots: set[str], drawing: bool) -> list[str]:
    """The modules of this project that some modules import, themselves included, sorted."""
    reached, waiting = set(), roots
    while waiting := {n for n in waiting - reached if drawing or not n.startswith("paper.report")}:
        reached |= waiting
        waiting = {name for module in waiting for name in _imports(_text(SOURCE, module))}
    return sorted(module for module in reached if _text(SOURCE, module))


@cache
def _imports(code: str) -> frozenset[str]:
    """Every dotted name that code imports, in functions too, with the packages around it.

    `from a import b` gives a.b, because b may be a module; names in the contents of `multishield` give their modules.
    """
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = multishield._MODULE_OF if node.module == "multishield" else {}
            names |= {f"{node.module}.{home.get(alias.name, alias.name)}" for alias in node.names}
    return frozenset(".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2))


_distributions_of = cache(packages_distributions)
