"""Fingerprints of code by what it computes: modules and all that they import of ours, as syntax trees.

Comments, docstrings, annotations, help texts and the wording of errors compute nothing, so they do not count.
Modules below `MEASURING` only look at what was trained: the code of training ends there.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_PROGRESS = "progress"
"""Name of the module that shows how far a computation is: no fingerprint has it."""
MEASURING = frozenset({"evaluate", "evaluation", "analysis", "report", "cli", "provenance", _PROGRESS, "runs", "files"})
"""Names of modules that only look at what is trained, or tell of it."""
_DATA_FILES = "*.txt"


def code_fingerprint(roots: Iterable[str], *, without: frozenset[str] = frozenset()) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the `closure` of ``roots``."""
    digest = hashlib.sha256()
    for name, path in sorted(closure(roots, without=without).items()):
        digest.update(f"{name}\n{module_fingerprint(path)}\n".encode())
    return digest.hexdigest()[:16]


def closure(roots: Iterable[str], *, without: frozenset[str] = frozenset()) -> dict[str, Path]:
    """Map ``roots``, what they import of the packages that they lie in or of core, and so on, to their files.

    Imports inside functions count, imports for type checkers do not. Modules with a part of their name in ``without``
    are left out, and progress bars always. Data files beside a package's modules are counted with it.
    """
    roots, without = list(roots), without | {_PROGRESS}
    packages = {root.partition(".")[0] for root in roots} | {"vitutor_core"}
    found: dict[str, Path] = {}
    waiting = roots
    while waiting:
        name = waiting.pop()
        path = _module_file(name)
        if name in found or path is None or without & set(name.split(".")[1:]):
            continue
        found[name] = path
        if path.name == "__init__.py":
            found |= {f"{name}/{file.name}": file for file in path.parent.glob(f"*/{_DATA_FILES}")}
        parents = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        waiting += [*parents, *(other for other in _read(path)[1] if other.partition(".")[0] in packages)]
    return found


def module_fingerprint(path: Path) -> str:
    """Return the SHA-256 of what a module computes, or of the bytes of a data file."""
    return _read(path)[0]


@cache
def _read(path: Path) -> tuple[str, tuple[str, ...]]:
    """Return the fingerprint of a file, and what it imports."""
    content = path.read_bytes()
    imports: tuple[str, ...] = ()
    if path.suffix == ".py":
        tree = _Computation().visit(ast.parse(content))
        content, imports = ast.unparse(tree).encode(), tuple(_imported(tree))
    return hashlib.sha256(content).hexdigest(), imports


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module is not None:
        # What is imported may be a module or a name in one; names that are not modules find no file.
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):  # an expression imports nothing
            yield from _imported(child)


@cache
def _module_file(name: str) -> Path | None:
    top, *rest = name.split(".")
    spec = find_spec(top)  # of a top-level package, this imports nothing
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]).joinpath(*rest)
    package, module = path / "__init__.py", path.with_suffix(".py")
    if package.is_file():
        return package
    return module if rest and module.is_file() else None


class _Computation(ast.NodeTransformer):
    """Removes from a syntax tree what computes nothing."""

    def _documented(self, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        # Docstrings, and those of fields.
        texts = [part for part in node.body if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)]
        node.body = [part for part in node.body if part not in texts] or [ast.Pass()]
        return self.generic_visit(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self._documented(node)

    visit_Module = visit_ClassDef = _documented  # noqa: N815  # as ast calls them
    visit_FunctionDef = visit_AsyncFunctionDef = _function  # noqa: N815  # likewise

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        is_for_type_checkers = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if is_for_type_checkers else self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.module == "__future__" else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.keywords = [keyword for keyword in node.keywords if keyword.arg != "help"]
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc, node.cause = node.exc.func, None
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = None
        return self.generic_visit(node)
