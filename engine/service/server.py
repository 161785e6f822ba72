"""Processes that answer: one, or several that take connections from the same port.

    run(Settings(run="Results/XMCKit/LF-DebianTitles-small/dexml", port=8000))

SIGTERM and Ctrl-C end it when what is in flight has been answered; SIGHUP loads the run anew, in
every process.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from typing import Any

import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from engine.service.app import create_app
from engine.service.metrics import FOLDER
from engine.service.service import Service
from engine.service.settings import Settings
from utils.config.plugins import allow
from utils.errors import InputError
from utils.run.logs import start_logging

log = logging.getLogger(__name__)
CONNECTIONS = 1000  # open ones of a process; more are answered with 503
KEEP_ALIVE = 30  # seconds that an idle connection stays open
GRACE = 30  # seconds that answers have when the service ends
STUCK = 300  # seconds after which a process that does not say that it lives is replaced
SWITCH = 0.0005  # seconds between threads: the one that answers waits for the one that computes


def make_app(settings: Settings) -> Any:
    """The application of one process, which this makes ready for it."""
    start_logging()
    sys.setswitchinterval(SWITCH)
    for module in settings.plugins:
        allow(module)
    try:
        return create_app(Service(settings))
    except InputError as error:
        if settings.workers == 1:
            raise
        log.error("%s", error)
        sys.exit(STARTUP_FAILURE)


def run(settings: Settings) -> None:
    """Answer until a signal ends it.

    Raises:
        InputError: the address cannot be had, or the run cannot be loaded.
    """
    listening = bind(settings.host, settings.port)
    port = listening.getsockname()[1]
    if settings.token is None and not is_loopback(settings.host):
        log.warning(
            "%s: whoever reaches it is answered; XMCKIT_TOKEN sets a token", _shown(settings.host)
        )
    config = uvicorn.Config(
        functools.partial(make_app, settings),
        factory=True,
        workers=settings.workers,
        ws="none",
        access_log=False,  # nothing of what is asked is kept
        log_config=None,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )
    log.info("http://%s:%d (Ctrl-C ends it)", _shown(settings.host), port)
    if settings.workers == 1:
        uvicorn.Server(config).run(sockets=[listening])
    else:
        _run_many(config, listening)


def _run_many(config: uvicorn.Config, listening: socket.socket) -> None:
    """Start processes and keep them alive."""
    config.timeout_worker_healthcheck = STUCK
    folder = tempfile.mkdtemp(prefix="xmckit-metrics-")
    os.environ[FOLDER] = folder
    try:
        processes = Processes(config, sockets=[listening])
        processes.run()
        if any(process.exitcode == STARTUP_FAILURE for process in processes.processes):
            raise InputError("the service could not start; what is said above is why")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Processes(Multiprocess):
    """uvicorn's processes, which load the run anew beside the one of now instead of ending."""

    def keep_subprocess_alive(self) -> None:
        """Replace processes that died; what they were at is not counted any more."""
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            mark_process_dead(pid)

    def handle_hup(self) -> None:
        """Pass SIGHUP on."""
        for process in self.processes:
            if process.process.is_alive() and process.process.pid is not None:
                os.kill(process.process.pid, signal.SIGHUP)


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, which nobody is heard at before a model is loaded.

    Raises:
        InputError: the address is taken, not of this machine, or none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise InputError(
            f"{_shown(host)}:{port}: cannot be listened at ({error.strerror}); --host and --port "
            "name another address"
        ) from error
    listening.set_inheritable(True)
    return listening


def is_loopback(host: str) -> bool:
    """Whether this machine alone reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
