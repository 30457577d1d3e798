"""What a stage's numbers depend on, so that DVC runs it again when and only when that has changed.

From the code cells of its notebook every function, class and constant of the package is followed that they reach. Each
gets a hash of its syntax tree, without what cannot change a number: comments, docstrings, annotations, the sentences of
errors and of progress lines. Rooms of plumbing and of drawing are not followed; the sections of params.yaml are taken
by their values. Of a table that is looked up by a value of params.yaml (`ByParameter`) only the entries are followed
that this experiment names: a new data set or model makes nothing stale that does not use it.

The result is a readable file: the difference of two of them names the function that has changed.
"""

import ast
import copy
import hashlib
import importlib.metadata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from paper import paths
from paper.params import Params
from paper.pipeline.notebooks import code_cells

PACKAGE = Path(__file__).parents[2]
# Rooms, or modules, that move things or draw them. The report is made of drawing: there it counts.
PLUMBING = (
    *("multishield.errors", "multishield.files", "multishield.progress", "multishield.tensors", "multishield.resume"),
    *("multishield.attacks.resumable", "paper.paths", "paper.params", "paper.pipeline", "paper.workers"),
)
DRAWING = ("paper.report",)
# Packages whose arithmetic is in the numbers.
ARITHMETIC = ("numpy", "open_clip_torch", "pyautoattack", "timm", "torch", "torchvision")
# Sections of params.yaml that each stage reads: dvc.yaml has the same lists (tests/pipeline holds them equal).
SECTIONS = {
    "dataset": ("dataset", "seed"),
    "training": ("seed", "training"),
    "alignment": ("alignment", "seed"),
    "baseline": ("baseline", "seed", "threat_model"),
    "multishield": ("multishield", "threat_model"),
    "adaptive": ("adaptive", "multishield", "seed", "threat_model"),
    "comparison": ("adaptive", "comparison", "multishield", "seed", "threat_model"),
    "studies": ("adaptive", "classifiers", "multishield", "seed", "studies", "threat_model"),
    "report": ("baseline", "classifiers", "dataset", "multishield", "report", "threat_model"),
}
# Functions whose texts are for people.
TALKING = ("progress", "aside", "warn")


class _Bare(ast.NodeTransformer):
    """Takes out of a syntax tree what cannot change a number."""

    def visit_Raise(self, node):
        called = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ast.Raise(exc=called, cause=None)

    def visit_Assert(self, node):
        return ast.Assert(test=self.visit(node.test), msg=None)

    def visit_Call(self, node):
        self.generic_visit(node)
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in TALKING:
            node.args = [a for a in node.args if not isinstance(a, ast.Constant | ast.JoinedStr)]
        return node

    def visit_arg(self, node):
        return ast.arg(arg=node.arg)

    def visit_FunctionDef(self, node):
        node.returns = None
        return self._without_docstring(node)

    def visit_ClassDef(self, node):
        return self._without_docstring(node)

    def _without_docstring(self, node):
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        self.generic_visit(node)
        return node


class _Module:
    """A module's bare definitions by name, what its imports mean, and what it does when it is imported."""

    def __init__(self, code: str):
        tree = _Bare().visit(ast.parse(code))
        self.definitions: dict[str, ast.AST] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        body = []
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("multishield", "paper"):
                self.imports |= {a.asname or a.name: (node.module, a.name) for a in node.names}
        for node in tree.body:
            names = _defined(node)
            if names:
                self.definitions |= dict.fromkeys(names, node)
            elif not isinstance(node, ast.Import | ast.ImportFrom) and not _is_text(node):
                body.append(node)
        if body:
            self.definitions["<import>"] = ast.Module(body=body, type_ignores=[])


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _defined(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [n.id for t in targets if t is not None for n in ast.walk(t) if isinstance(n, ast.Name)]


class Code:
    """The package's code, read once."""

    def __init__(self, package: Path = PACKAGE):
        self.package = package

    @cache  # noqa: B019 - one object per check
    def module(self, name: str) -> _Module | None:
        """The module of a dotted name, or None."""
        place = self.package.joinpath(*name.split("."))
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        return _Module(file.read_text(encoding="utf-8")) if file.is_file() else None

    def reached(self, cells: str, strings: set[str], left_out: tuple[str, ...]) -> dict[str, str]:
        """Hash of every definition that the code of some cells reaches, by its dotted name.

        Args:
            strings: the texts of the experiment's parameters, which choose from `ByParameter` tables.
            left_out: rooms and modules that are not followed.
        """
        start = _Module(cells)
        hashes: dict[str, str] = {}
        todo = [("", "<cells>", _Bare().visit(ast.parse(cells)), start)]
        while todo:
            module, name, node, scope = todo.pop()
            bare = _chosen(node, strings)
            hashes[f"{module}.{name}".removeprefix(".")] = _hash(bare)
            for target in self._targets(module, bare, scope):
                key = f"{target[0]}.{target[1]}"
                if key not in hashes and not key.startswith(tuple(f"{room}." for room in left_out)):
                    hashes[key] = ""  # seen
                    found = self.module(target[0])
                    todo.append((*target, found.definitions[target[1]], found))
        return dict(sorted(hashes.items()))

    def _targets(self, module: str, node: ast.AST, scope: _Module) -> Iterator[tuple[str, str]]:
        """Where the names in a piece of code are defined, and what importing those modules does."""
        for name in _names(node):
            first, _, rest = name.partition(".")
            if first in scope.definitions and module:
                yield module, first
            elif first in scope.imports:
                yield from self._resolve(*scope.imports[first], rest)

    def _resolve(self, module: str, name: str, rest: str) -> Iterator[tuple[str, str]]:
        """The definition that `from module import name` means, and for a module the attribute that is used of it."""
        below = self.module(f"{module}.{name}")
        if below is not None:
            attribute, _, rest = rest.partition(".")
            if "<import>" in below.definitions:
                yield f"{module}.{name}", "<import>"
            if attribute:
                yield from self._resolve(f"{module}.{name}", attribute, rest)
            return
        found = self.module(module)
        if found is None:
            return
        if name in found.definitions:
            if "<import>" in found.definitions:
                yield module, "<import>"
            yield module, name
        elif name in found.imports:
            yield from self._resolve(*found.imports[name], rest)
        elif "_PUBLIC" in found.definitions:  # the package's own table of contents
            home = ast.literal_eval(found.definitions["_PUBLIC"].value).get(name)
            if home:
                yield from self._resolve(home, name, rest)


def _names(node: ast.AST) -> set[str]:
    """Names that a piece of code uses, with their attributes: "torch.nn.Module"."""
    found = set()
    for n in ast.walk(node):
        if isinstance(n, ast.Name):
            found.add(n.id)
        elif isinstance(n, ast.Attribute):
            text, inner = n.attr, n.value
            while isinstance(inner, ast.Attribute):
                text, inner = f"{inner.attr}.{text}", inner.value
            if isinstance(inner, ast.Name):
                found.add(f"{inner.id}.{text}")
    return found


def _chosen(node: ast.AST, strings: set[str]) -> ast.AST:
    """The same code, its `ByParameter` tables cut down to the entries that the parameters name."""
    if not any(isinstance(n, ast.Name) and n.id == "ByParameter" for n in ast.walk(node)):
        return node
    node = copy.deepcopy(node)
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "ByParameter":
            (table,) = call.args
            kept = [(k, v) for k, v in zip(table.keys, table.values, strict=True) if k.value in strings]
            table.keys, table.values = [k for k, _ in kept], [v for _, v in kept]
    return node


def _hash(node: ast.AST) -> str:
    return hashlib.sha256(ast.dump(node).encode()).hexdigest()[:12]


def _strings(value) -> set[str]:
    """Every text in nested parameters."""
    if isinstance(value, dict):
        return set().union(*map(_strings, value.values()))
    if isinstance(value, list):
        return set().union(*map(_strings, value))
    return {value} if isinstance(value, str) else set()


def _own_code(strings: set[str]) -> dict[str, str]:
    """Hashes of the user's modules that params.yaml names as "module:function", where they lie in the project."""
    modules = {s.partition(":")[0] for s in strings if ":" in s}
    files = {m: paths.root().joinpath(*m.split(".")).with_suffix(".py") for m in modules}
    return {
        m: _hash(_Bare().visit(ast.parse(f.read_text(encoding="utf-8"))))
        for m, f in sorted(files.items())
        if f.is_file()
    }


def fingerprint_of(code: Code, stage: str, item: str | None, notebook, params: Params) -> dict:
    """What a run of a stage, for a classifier or a study, depends on.

    Returns:
        "code": hash by definition; "own": of the user's modules; "packages": versions; "values": the stage's sections
        of params.yaml, typed and with their defaults.
    """
    values = params.model_dump(mode="json")
    if stage == "studies":
        values["studies"] = {name: values["studies"][name] for name in ("images", item)}
        item = None
    if item:
        values |= {"classifiers": [item], "training": values["training"][item]}
    else:
        values["training"] = {name: values["training"][name] for name in params.classifiers}
    strings = _strings(values)
    cells = "\n".join(cell.source for cell in code_cells(notebook))
    left_out = PLUMBING if stage == "report" else PLUMBING + DRAWING
    return {
        "code": code.reached(cells, strings, left_out),
        "own": _own_code(strings),
        "packages": {name: importlib.metadata.version(name) for name in ARITHMETIC},
        "values": {name: values[name] for name in ("arithmetic", *SECTIONS[stage])},
    }
