"""No name of a file or class moves the cursor, clears the screen or hides a message."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import warnings
from pathlib import Path

import click
import pytest
from PIL import Image

from core.tests.conftest import Called
from vitutor_core.cli.entry import run
from vitutor_core.cli.paper import paper_group
from vitutor_core.cli.vitutor import vitutor
from vitutor_core.errors import DataError
from vitutor_core.paper import installed_papers
from vitutor_core.terminal import printable, say_json

NAMES = [
    "bad\x1b[2J\x1b[31m.png",
    "bad\x1b]0;title\x07.png",
    "bad\x9b2J.png",
    "bad\x08\x08\x08.png",
    "bad\rerror: none.png",
    "bad\u202egnp.png",
    "bad\u200b.png",
    os.fsdecode(b"bad\xff.png"),
]


def on_a_terminal(*command: str) -> bytes:
    """Run a command whose output is a terminal, and return what it wrote there."""
    master, slave = pty.openpty()
    subprocess.run(command, stdout=slave, stderr=slave, stdin=subprocess.DEVNULL, check=False, timeout=120)
    os.close(slave)
    text = b""
    try:
        while chunk := os.read(master, 4096):
            text += chunk
    except OSError:  # the end of a terminal
        pass
    os.close(master)
    return text


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_errors_and_warnings_spell_them_out(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        warnings.warn(f"{name}: odd", stacklevel=1)
        raise DataError(f"{name}: cannot read the image")

    def misuse() -> None:
        raise click.UsageError(f"no {name}")

    warnings.simplefilter("always")
    for call in (fail, misuse):
        with pytest.raises(SystemExit):
            run(click.Command("call", callback=call), [])
    shown = capfd.readouterr().err
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert len(shown.splitlines()) >= 3
    assert "bad" in shown
    assert "warning: " in shown


@pytest.mark.slow
def test_a_terminal_sees_none_of_them(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in ("a", "b"):
            for number in range(2):
                path = tmp_path / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), number).save(path)
    for name in NAMES:
        (tmp_path / "train" / "a" / name).write_bytes(b"junk")
        (tmp_path / "train" / "b" / name).with_suffix(".note\x1b[2J").write_bytes(b"junk")
    command = "import sys; from vitutor_core.cli.main import main; sys.exit(main())"
    text = on_a_terminal(sys.executable, "-c", command, "data", "--source", f"folder:{tmp_path}")
    error, found = text[text.index(b"error: ") :], text.count(b"cannot read the image")
    assert found == len(NAMES)
    assert b"\x1b" not in error
    assert b"\x1b[2J" not in text
    assert b"8 .note\\x1b[2j" in text.lower()


@pytest.mark.parametrize(("encoding", "name"), [("latin-1", "\u56f3"), ("utf-8", os.fsdecode(b"\xff"))], ids=ascii)
def test_output_spells_out_what_its_encoding_has_not(encoding: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    with pytest.raises(SystemExit) as caught:
        run(click.Command("call", callback=lambda: click.echo(f"written {name}")), [])
    assert caught.value.code == 0
    assert written.getvalue() == f"written {name}\n".encode("ascii", "backslashreplace")


@pytest.mark.parametrize(("encoding", "shown"), [("latin-1", "\\u00e9"), ("utf-8", "\u00e9")])
def test_json_stays_json_in_every_encoding(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"\u00e9": dict.fromkeys([*NAMES, "\u56f3", "a\u00a0b", "\u00ad", "\U000e0001"], 1.5)}
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    say_json(value)
    text = written.getvalue().decode(encoding)
    assert json.loads(text) == value
    assert f'"{shown}"' in text
    assert all(character.isprintable() or character == "\n" for character in text)


def test_plain_text_stays() -> None:
    text = "Ünïcödé 'quotes' 100 % <b> C:\\x €"
    assert printable(text) == text


@pytest.mark.parametrize("package", ["vitutor", *installed_papers()])
def test_lists_of_commands_cut_no_sentence(package: str, call: Called) -> None:
    group = vitutor if package == "vitutor" else paper_group(installed_papers()[package])
    _, out, _ = call(group, "--help")
    assert not [line for line in out.splitlines() if line.endswith("...") and not line.startswith("Usage")]
