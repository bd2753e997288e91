"""The pages of the site: ``docs`` as it is, with what a site needs beside it.

Links that leave ``docs`` lead to a page with that file's text. A link to a name in a Python file,
``[`l1_loss`](../../drloc/src/drloc/losses/l1.py)``, leads to the line where it is defined: found anew in each build, so
that no line number is written down.
"""

from __future__ import annotations

import ast
import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<=\])\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
_NAMED = re.compile(r"\[`([\w.]+)`\]\(([^)\s#]+\.py)\)")
_CODE = re.compile(r"^(`{3,}).*?^\1$|``[^`].*?``", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".sbatch": "bash", ".toml": "toml", ".json": "json"}
_USE = (
    "which_method.md",
    "foundation_teachers.md",
    "reproducing.md",
    "cluster.md",
    "detection.md",
    "reference/*.md",
    "adding_a_method.md",
)
_UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"


class BrokenLinkError(ValueError):
    """A page links to a file or a name that is not there."""


def prepare(root: Path, folder: Path) -> Path:
    """Write pages and config of the site of the repository ``root`` to ``folder``; return the config.

    Raises:
        BrokenLinkError: a page links to what is not there.

    """
    docs, pages = root / "docs", folder / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(docs, pages, ignore=shutil.ignore_patterns("*.ipynb", "*.json", "*.md"))
    shutil.copy(root / "website" / "style.css", pages / "style.css")
    sources: set[Path] = set()
    for path in sorted(docs.rglob("*.md")):
        relative = path.relative_to(docs)
        text = _outside_code(path.read_text(encoding="utf-8"), lambda part, at=path: _linked(part, at, root, sources))
        (pages / _page(relative)).write_text(text, encoding="utf-8")
    for path in sorted(docs.glob("notebooks/*.ipynb")):
        _write_notebook(path, pages / "notebooks")
    for source in sorted(sources):
        target = pages / "source" / f"{source}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        language = _LANGUAGES.get(source.suffix, "text")
        code = (root / source).read_text(encoding="utf-8").rstrip("\n")
        page = f'# {source.name}\n\n`{source}`\n\n````{{.{language} linenums="1"}}\n{code}\n````\n'
        target.write_text(_UNSEARCHED + page, encoding="utf-8")
    _write_decisions(pages / "decisions")
    config = folder / "zensical.toml"
    text = (root / "website" / "zensical.toml").read_text(encoding="utf-8")
    config.write_text(text.replace("nav = []", f"nav = {_toml(_navigation(pages))}"), encoding="utf-8")
    return config


def line_of(path: Path, name: str) -> int:
    """Return the line of ``path`` where ``name`` (a function, a class, a constant, or Class.method) is defined.

    Raises:
        BrokenLinkError: it is not defined there.

    """
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    line = 0
    for part in name.split("."):
        found = next((node for node in body if part in _names(node)), None)
        if found is None:
            raise BrokenLinkError(f"{path}: defines no {name}")
        line, body = found.lineno, getattr(found, "body", [])
    return line


def _names(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name):
                yield target.id


def _outside_code(text: str, change: Any) -> str:
    """Apply ``change`` to all of a page but its code: fenced, or between two backticks."""
    done, parts = 0, []
    for code in _CODE.finditer(text):
        parts += [change(text[done : code.start()]), code[0]]
        done = code.end()
    return "".join([*parts, change(text[done:])])


def _linked(text: str, page: Path, root: Path, sources: set[Path]) -> str:
    docs = root / "docs"

    def lead(found: re.Match[str]) -> str:
        target, anchor = (page.parent / found[1]).resolve(), found[2] or ""
        if not target.exists():
            raise BrokenLinkError(f"{page.relative_to(root)}: {found[1]} is not there")
        if target.suffix == ".ipynb":
            return f"({found[1].removesuffix('.ipynb')}.md{anchor})"
        if target.is_relative_to(docs) and target.suffix != ".json":
            return f"({found[1]}/index.md)" if target.is_dir() else f"({_page(Path(found[1]))}{anchor})"
        if not target.is_file():
            raise BrokenLinkError(f"{page.relative_to(root)}: {found[1]} is a folder outside docs; link to a file")
        source = target.relative_to(root)
        sources.add(source)
        up = "../" * (len(page.relative_to(docs).parts) - 1)
        return f"({up}source/{source}.md{anchor})"

    def name(found: re.Match[str]) -> str:
        path = (page.parent / found[2]).resolve()
        if not path.is_file():
            raise BrokenLinkError(f"{page.relative_to(root)}: {found[2]} is not there")
        return f"[`{found[1]}`]({found[2]}#__codelineno-0-{line_of(path, found[1])})"

    return _LINK.sub(lead, _NAMED.sub(name, text))


def _write_notebook(path: Path, folder: Path) -> None:
    """Write a notebook as a page: text, code, and what the code has printed and drawn."""
    parts: list[str] = []
    pictures = 0
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        language = "bash" if text.startswith("%%bash") else "python"
        parts.append(text if cell["cell_type"] == "markdown" else f"```{language}\n{text}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                pictures += 1
                picture = folder / f"{path.stem}-{pictures}.png"
                picture.write_bytes(base64.b64decode("".join(data["image/png"])))
                parts.append(f"![Drawn by the code above]({picture.name})")
            else:
                shown = "".join(output.get("text", data.get("text/plain", [])))
                parts.append(f"```text\n{shown.rstrip()}\n```")
    (folder / f"{path.stem}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _page(path: Path) -> Path:
    """Return where a page of docs stands in the site: what a forge shows of a folder is the folder's first page."""
    return path.with_name("index.md") if path.name == "README.md" else path


def _write_decisions(folder: Path) -> None:
    lines = ["# Decisions", "", "Why things are as they are, a page each.", ""]
    lines += [f"- [{_title(path)}]({path.name})" for path in sorted(folder.glob("*.md"))]
    (folder / "index.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _title(path: Path) -> str:
    return next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# "))[2:]


def _navigation(pages: Path) -> list[Any]:
    def section(title: str, *patterns: str) -> dict[str, Any]:
        found = [path for pattern in patterns for path in sorted(pages.glob(pattern))]
        return {title: [{_title(path): str(path.relative_to(pages))} for path in found]}

    titles = {path.name: f"Scale {path.name}" for path in sorted(pages.glob("results/*/"))}
    titles |= {"compare": "One student, one budget"} if "compare" in titles else {}
    results = [section(title, f"results/{name}/*.md") for name, title in titles.items()]
    return [
        {"Home": "index.md"},
        section("Papers", "papers/*.md"),
        section("Notebooks", "notebooks/*.md"),
        {"Results": ["results/index.md", *(part for part in results if any(part.values()))]},
        section("Use", *_USE),
        section("Fidelity", "fidelity/*.md"),
        {"Decisions": ["decisions/index.md", *section("", "decisions/0*.md")[""]]},
    ]


def _toml(value: Any) -> str:
    """Write nested lists and tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(_toml, value)) + "]" if isinstance(value, list) else json.dumps(value)
