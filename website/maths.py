"""A Markdown extension: LaTeX, ``$inline$`` or ``$$displayed$$``, becomes MathML, which needs no script."""

from __future__ import annotations

import re
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

_DISPLAYED = re.compile(r"^\$\$\n(.+?)\n\$\$$", re.MULTILINE | re.DOTALL)
_INLINE = r"(?<![\\$\w])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\w$])"


class _Displayed(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        return _DISPLAYED.sub(self._stash, "\n".join(lines)).split("\n")

    def _stash(self, found: re.Match[str]) -> str:
        equation = f'<div class="equation">{convert(found[1], display="block")}</div>'
        return f"\n{self.md.htmlStash.store(equation)}\n"


class _Inline(InlineProcessor):
    def handleMatch(  # type: ignore[override]  # noqa: N802  # Markdown's name
        self, m: re.Match[str], data: str
    ) -> tuple[Element | str, int, int]:
        return self.md.htmlStash.store(convert(m[1])), m.start(0), m.end(0)


class Maths(Extension):
    """Reads LaTeX in the form that code forges read as well."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802  # Markdown's name
        # Behind fenced code (25), whose dollars are not ours; in front of escapes (180), which would eat backslashes,
        # but behind code spans (190).
        md.preprocessors.register(_Displayed(md), "displayed_maths", 22)
        md.inlinePatterns.register(_Inline(_INLINE, md), "inline_maths", 185)


def makeExtension(**options: Any) -> Maths:  # noqa: N802  # Markdown's name
    """Return the extension; Markdown calls this."""
    return Maths(**options)
