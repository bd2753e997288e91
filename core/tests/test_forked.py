"""A forked process is what Python would be: to who waits for it, who signals it, and who gives it files."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conformance import forked

ROOT = Path(__file__).parents[2]
DEAF = "import signal; signal.signal(signal.SIGTERM, lambda *_: print('told') or exit(5)); print('here', flush=True); "


def start(*arguments, **options):
    command = [forked.python(), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(
    ("code", "returned", "said"),
    [
        ("import sys; print(*sys.argv[:2])", 0, ("-c a\n", "")),
        ("import os, sys; print(os.read(int(sys.argv[2]), 9)); sys.exit(7)", 7, ("b'through'\n", "")),
        ("import sys; sys.exit('sorry')", 1, ("", "sorry\n")),
        ("import os; os.kill(os.getpid(), 9)", -9, ("", "")),
        ("import atexit; atexit.register(print, 'end'); exit()", 0, ("end\n", "")),
    ],
)
def test_its_end_its_words_and_its_files(code, returned, said):
    reading, writing = os.pipe()
    os.write(writing, b"through")
    with start("-c", code, "a", str(reading), pass_fds=[reading]) as process:
        os.close(reading)
        os.close(writing)
        assert process.communicate(timeout=100) == said
    assert process.returncode == returned


def test_a_module_and_what_it_starts_are_forked(tmp_path):
    (tmp_path / "outer.py").write_text(
        "import subprocess, sys\n"
        "assert __name__ == '__main__' and 'torch' in sys.modules\n"
        "subprocess.run([sys.executable, '-u', '-c', 'import sys; print(\"timm\" in sys.modules)'], check=True)\n"
    )
    with start("-m", "outer", cwd=tmp_path) as process:
        assert process.communicate(timeout=100) == ("True\n", "")


def test_what_is_no_code_and_no_module_is_left_to_python():
    with start("--version") as process:
        assert process.communicate(timeout=100)[0].split() == ["Python", sys.version.split()[0]]


def test_a_signal_is_passed_on():
    with start("-c", DEAF + "signal.pause()") as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=100) == ("told\n", "")
    assert process.returncode == 5


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for a process that is not its own")
def test_it_ends_with_who_started_it():
    with start("-c", DEAF + "import os; print(os.getpid(), flush=True); signal.pause()") as process:
        assert process.stdout.readline() == "here\n"
        own = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
        assert select.select([own], [], [], 100)[0]
    os.close(own)


def test_one_server_is_shared_by_the_processes_that_one_starts(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    forked.share()
    done = forked.run("from conformance import forked; print(forked.python())", cwd=ROOT, check=True)
    assert done.stdout.strip() == forked.python()
