"""Commands as children of one preloaded server: torch and transformers are imported once, not by
each of them.

    # as subprocess.run([sys.executable, "eval.py", folder])
    got = run("eval.py", folder)
    # as Popen; child.send_signal(SIGTERM); child.finish()
    child = Command("train.py", path, "--resume")
    # as `accelerate launch` on CPUs, without its start-up
    launch(2, "predict.py", folder, "--text", "x")

What a test needs of the interpreter's own start or of the launcher itself it must start by
subprocess.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.conformance.processes import environments

ROOT = Path(__file__).parent.parent
SECONDS = 300
SERVER = multiprocessing.get_context("forkserver")
# one server for all tests: it imports everything
SERVER.set_forkserver_preload(["tests.preloaded"])


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class Command:
    """A running command: a script of the repository, or `-m` and a module, and its words.

    Args:
        folder: it runs in.
    """

    def __init__(
        self, *words: object, env: Mapping[str, str] | None = None, folder: Path = ROOT
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="command-")
        self._outputs = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        self._process = SERVER.Process(
            target=_run,
            args=([str(word) for word in words], dict(env or {}), folder, *self._outputs),
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it; nothing where the command has ended already."""
        assert self._process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def said(self) -> str:
        """What stands on its stderr now."""
        path = self._outputs[1]
        return path.read_text() if path.exists() else ""

    def finish(self, timeout: float = SECONDS, check: bool = False) -> Finished:
        """Wait for its end; AssertionError if it takes longer, or fails where `check`."""
        self._process.join(timeout)
        late = self._process.exitcode is None
        if late:
            self._process.kill()
            self._process.join()
        stdout, stderr = (path.read_text() if path.exists() else "" for path in self._outputs)
        self._folder.cleanup()
        assert not late, f"the command took more than {timeout} s:\n{stderr}"
        if check:
            assert self._process.exitcode == 0, stderr
        return Finished(self._process.exitcode or 0, stdout, stderr)


def _run(words: list[str], env: dict[str, str], folder: Path, stdout: Path, stderr: Path) -> None:
    """In the child: become the command."""
    for path, number in ((stdout, 1), (stderr, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(env)
    os.chdir(folder)
    is_module = words[0] == "-m"
    sys.argv = words[1:] if is_module else words
    if is_module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def run(
    *words: object,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    folder: Path = ROOT,
) -> Finished:
    """Run a command to its end."""
    return Command(*words, env=env, folder=folder).finish(check=check)


def launch(processes: int, *words: object, check: bool = True, folder: Path = ROOT) -> Finished:
    """Run a command on several CPU processes, which the death of one ends; outputs are those of
    all."""
    children = [Command(*words, env=env, folder=folder) for env in environments(processes)]
    deadline = time.monotonic() + SECONDS
    while any(child.returncode is None for child in children) and time.monotonic() < deadline:
        if any(child.returncode for child in children):  # as the launcher does
            for child in children:
                child.send_signal(signal.SIGTERM)
            break
        time.sleep(0.02)
    ends = [child.finish() for child in children]
    worst = next((end.returncode for end in ends if end.returncode), 0)
    stderr = "".join(end.stderr for end in ends)
    if check:
        assert worst == 0, stderr
    return Finished(worst, "".join(end.stdout for end in ends), stderr)
