"""Entry point of the vitutor command."""

from __future__ import annotations

from typing import NoReturn

from vitutor_core.terminal import exit_after


def main() -> NoReturn:
    """Run the vitutor command; what it imports takes a second, in which Ctrl-C is answered as later."""
    exit_after(_run)


def _run() -> NoReturn:
    from vitutor_core.cli.entry import run
    from vitutor_core.cli.vitutor import vitutor

    run(vitutor)
