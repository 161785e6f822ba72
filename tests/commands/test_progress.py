"""Progress bars of processes that fork: nobody waits for a lock that a dead process held."""

import logging
import multiprocessing
import os
import signal
import threading

from utils.progress import tqdm
from utils.run.logs import start_logging

CONTEXT = multiprocessing.get_context("fork")


def killed_inside(action) -> None:
    """Fork a child that calls `action(inside)` and is killed once it has set the event `inside`."""
    inside = CONTEXT.Event()
    child = CONTEXT.Process(target=action, args=(inside,))
    child.start()
    assert inside.wait(30)
    os.kill(child.pid, signal.SIGKILL)
    child.join(30)
    assert child.exitcode == -signal.SIGKILL


def hold_the_lock(inside) -> None:
    with tqdm.get_lock():
        inside.set()
        signal.pause()


def log_in_time() -> bool:
    """Whether a line is logged within seconds."""
    writer = threading.Thread(
        target=logging.getLogger("test").warning, args=("alive",), daemon=True
    )
    writer.start()
    writer.join(10)
    return not writer.is_alive()


def test_a_child_killed_while_it_writes_leaves_the_others_writing(capfd):
    start_logging()
    tqdm.write("made the lock")
    killed_inside(hold_the_lock)
    assert log_in_time()
    assert "alive" in capfd.readouterr().err


def test_a_fork_does_not_wait_for_a_thread_that_it_does_not_have(capfd):
    start_logging()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with tqdm.get_lock():
            held.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    child = CONTEXT.Process(target=lambda: os._exit(0 if log_in_time() else 1))
    child.start()
    child.join(30)
    release.set()
    holder.join()
    assert child.exitcode == 0
