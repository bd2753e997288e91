"""vitutor fields: the reference page of all fields. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

import click

from vitutor_core.cli import options
from vitutor_core.files import write_text
from vitutor_core.report.fields import fields_page


@click.command("fields")
@options.file("--out", "Write the page there.", default=Path("docs/reference/fields.md"), show_default=True)
def fields(out: Path) -> None:
    """Write the reference page of the fields of all installed papers."""
    write_text(out, fields_page())
    click.echo(f"written {out}")
