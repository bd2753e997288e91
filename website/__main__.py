"""Build the site: prepare its pages, then let Zensical make HTML of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from website.pages import BrokenLinkError, prepare

ROOT = Path(__file__).parents[1]


def build(folder: Path) -> Path:
    """Write the site to ``folder``/site and return its first page.

    Raises:
        BrokenLinkError: a page links to what is not there.
        subprocess.CalledProcessError: Zensical found an error, and has said which.

    """
    config = prepare(ROOT, folder)
    # From the root, where the Markdown extension is found.
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", str(config)]
    subprocess.run(command, check=True, cwd=ROOT)
    return folder / "site" / "index.html"


def main() -> None:
    """Build the site in the folder that the first argument names, or in build/website."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "website"
    try:
        print(f"{build(folder.absolute())}: open it in a browser; it needs no server and no network")
    except BrokenLinkError as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError:
        sys.exit(1)


if __name__ == "__main__":
    main()
