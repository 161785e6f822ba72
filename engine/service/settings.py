"""What a service is started with, and how much one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """What a request may ask for, and how long it may take.

    Attributes:
        texts: of a request.
        characters: of a text.
        k: labels of an answer.
        body: bytes of a request's body.
        chosen: labels that a request may allow, or exclude.
        waiting: texts of requests that wait; more are refused with 503.
        seconds: until a body has come, and until an answer is there.
    """

    texts: int = 256
    characters: int = 20_000
    k: int = 100
    body: int = 4 << 20
    chosen: int = 10_000
    waiting: int = 4096
    seconds: float = 30.0


@dataclass(frozen=True)
class Settings:
    """How a service runs.

    Attributes:
        run: folder whose model answers; read again at every reload.
        overrides: of the run's config, as on the command line.
        plugins: modules that the run may import.
        workers: processes that answer, each with a model of its own.
        batch: texts that are answered together, of as many requests as wait.
        token: that requests must bring; None = everybody is answered.
    """

    run: str
    overrides: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    batch: int = 64
    token: str | None = field(default=None, repr=False)
    limits: Limits = Limits()
