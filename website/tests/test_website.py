"""The site, built from the repository's own pages, and what a reader's browser makes of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from markdown import Markdown

from website.__main__ import build
from website.maths import Maths
from website.pages import BrokenLinkError, line_of, prepare

ROOT = Path(__file__).parents[2]
PAPERS = ("bootstrapping_vit", "coadvise", "dearkd", "drloc", "mae_lite_distill")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build(tmp_path_factory.mktemp("website")).parent


def small(tmp_path, page, source="def f():\n    pass\n"):
    """A repository of one page and one source."""
    for name, text in (("docs/decisions/0001-x.md", "# x"), ("docs/results/README.md", "# r"), ("docs/page.md", page)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "code.py").write_text(source)
    shutil.copytree(ROOT / "website", tmp_path / "website", ignore=shutil.ignore_patterns("tests"))
    prepare(tmp_path, tmp_path / "out")
    return (tmp_path / "out" / "pages" / "page.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_each_equation_stands_beside_the_line_that_computes_it(site, paper):
    page = site / "papers" / f"{paper}.html"
    article = page.read_text().partition("<article")[2].partition("</article")[0]
    assert article.count('<div class="equation"><math') >= 4
    assert not re.search(r"[\\$]", re.sub(r"<code>.*?</code>", "", article)), "LaTeX that was not drawn"
    links = re.findall(r'<a href="\.\./source/([^"#]+\.py)\.html#__codelineno-0-(\d+)"><code>(?:\w+\.)*(\w+)<', article)
    assert len(links) >= 8
    for source, line, name in links:
        defined = (ROOT / source).read_text().splitlines()[int(line) - 1]
        assert re.search(rf"^\s*(def|class) {name}\b|^{name}\b.*=", defined), f"{source}:{line}: {defined}"
        assert f'id="__codelineno-0-{line}"' in (site / "source" / f"{source}.html").read_text()


@pytest.mark.slow
def test_nothing_is_fetched_and_every_page_is_there(site):
    pages = list(site.rglob("*.html"))
    for page in pages:
        loaded = re.findall(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text())
        assert not loaded, page
    docs, shown = ROOT / "docs", {page.relative_to(site).with_suffix("") for page in pages}
    written = [*docs.rglob("*.md"), *docs.rglob("*.ipynb")]
    assert {page.relative_to(docs).with_suffix("") for page in written if page.stem != "README"} <= shown
    assert "results:dearkd" not in re.sub("<!--.*?-->", "", (site / "results" / "index.html").read_text())


@pytest.mark.slow
def test_no_page_is_wider_than_a_phone_and_what_scrolls_says_so(site, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    pages = [*(f"papers/{paper}.html" for paper in PAPERS), "index.html", "cluster.html", "results/small/dearkd.html"]
    frames = "".join(f'<iframe width="390" height="800" src="{(site / page).as_uri()}"></iframe>' for page in pages)
    (tmp_path / "frames.html").write_text(f"""{frames}<pre></pre><script>
      window.onload = () => {{
        const found = [...document.querySelectorAll("iframe")].map(frame => {{
          const page = frame.contentDocument, all = what => [...page.querySelectorAll(what)];
          return {{
            beyond: Math.max(0, page.documentElement.scrollWidth - page.documentElement.clientWidth),
            flat: all("math").filter(math => math.getBoundingClientRect().height < 5).length,
            unsaid: all("table, .equation math").filter(wide => {{
              const around = wide.closest(".md-typeset__scrollwrap, .equation");
              return wide.getBoundingClientRect().width > 390
                && !(around && getComputedStyle(around).backgroundImage.includes("gradient"));
            }}).length,
          }};
        }});
        document.querySelector("pre").textContent = JSON.stringify(found);
      }};</script>""")
    command = [chromium, "--headless", "--no-sandbox", "--allow-file-access-from-files"]
    command += ["--virtual-time-budget=5000", "--dump-dom", (tmp_path / "frames.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(re.search(r"<pre>(.+?)</pre>", shown)[1])
    assert dict(zip(pages, found, strict=True)) == {page: {"beyond": 0, "flat": 0, "unsaid": 0} for page in pages}


def test_a_link_finds_the_line_of_a_name_wherever_it_has_moved(tmp_path):
    text = "# page\n\n[`f`](../code.py) and ``[`f`](no.py)`` [a file](../code.py)\n\n```\n[`f`](nowhere.py)\n```\n"
    assert "(source/code.py.md#__codelineno-0-1) and" in small(tmp_path / "a", text)
    source = "import os\n\n\nclass A:\n    x: int = 0\n\n    def f(self): ...\n\n\nf = 1\n"
    moved = small(tmp_path / "b", text, source)
    assert "[`f`](source/code.py.md#__codelineno-0-10)" in moved
    assert "[a file](source/code.py.md)" in moved
    assert "[`f`](nowhere.py)" in moved  # in code, it is not a link
    assert "[`f`](no.py)" in moved
    assert line_of(tmp_path / "b" / "code.py", "A.f") == 7
    assert line_of(tmp_path / "b" / "code.py", "A.x") == 5


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("[`g`](../code.py)", r"code\.py: defines no g$"),
        ("[`f`](../other.py)", r"^docs/page\.md: \.\./other\.py is not there$"),
        ("[x](other.md)", r"^docs/page\.md: other\.md is not there$"),
        ("[x](../website)", r"^docs/page\.md: \.\./website is a folder outside docs; link to a file$"),
    ],
)
def test_a_link_that_leads_nowhere_ends_the_build(tmp_path, link, said):
    with pytest.raises(BrokenLinkError, match=said):
        small(tmp_path, f"# page\n\n{link}\n")


def test_latex_becomes_mathml_and_code_stays_code():
    page = Markdown(extensions=["fenced_code", Maths()])
    shown = page.convert("a $x_i$ and `$y$`, 5 $ or 6 $\n\n$$\n\\frac{a}{b}\n$$\n\n```\n$$\nz\n$$\n```\n")
    assert shown.count("<math") == 2
    assert "<msub><mi>x</mi><mi>i</mi></msub>" in shown
    assert "<mfrac>" in shown
    assert "<code>$y$</code>" in shown
    assert "5 $ or 6 $" in shown
    assert "$$\nz\n$$" in shown
