"""`serve`: a bundle as a decision service over HTTP."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from offload_jax.deploy import Decider, load
from offload_jax.files.checks import ConfigError
from offload_jax.files.disk import cache_folder

TOKEN = "OFFLOAD_JAX_TOKEN"


@dataclass(frozen=True)
class Arguments:
    """Serve decisions over HTTP: POST /plan, GET /healthz, /metrics and /docs.

    If the environment variable OFFLOAD_JAX_TOKEN is set, /plan wants it as bearer token.
    """

    bundle: tyro.conf.Positional[Path]
    """Folder or .zip."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of the machine's."""
    port: int = 8000
    """Port to listen on; 0 for any that is free."""
    runtime: str | None = None
    """iree or jax. Default: iree, which is ready at once, where the bundle has programs for it."""
    body_bytes: int = 2**20
    """Longest request."""
    waiting: int = 256
    """Instances that may wait; a request that finds more is refused with 503."""
    window_ms: float = 2.0
    """Time that a request waits for others to be decided with."""
    deadline_s: float = 1.0
    """Of requests that name none: later than that they get what is best so far."""


def run(words: list[str], prog: str) -> int:
    """Serves until it is told to stop (SIGINT, SIGTERM); what waits is still answered."""
    parsed = tyro.cli(Arguments, args=words, prog=prog)
    _check(parsed)
    try:
        import structlog
        import uvicorn

        from offload_jax.deploy.service import Limits, make_app
    except ImportError as error:
        raise ConfigError(
            f"serve needs {error.name}, which is missing; pip install 'offload-jax[serve]'"
        ) from None
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    log = structlog.get_logger("offload_jax.service")
    decider = _ready(parsed)
    limits = Limits(
        body_bytes=parsed.body_bytes,
        waiting=parsed.waiting,
        window_s=parsed.window_ms / 1e3,
        deadline_s=parsed.deadline_s,
    )
    app = make_app(decider, limits, os.environ.get(TOKEN) or None)
    log.info(
        "ready",
        bundle=decider.bundle.name,
        runtime=decider.runtime.name,
        host=parsed.host,
        port=parsed.port,
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=parsed.host,
            port=parsed.port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=10,
        )
    )
    # Its own handlers raise the signal again once it has stopped, so that the process would die.
    server.capture_signals = lambda: _stopping(server)  # type: ignore[method-assign]
    with _settled():
        server.run()
    log.info("stopped")
    return 0 if server.started else 1


@contextmanager
def _stopping(server: Any) -> Iterator[None]:
    """SIGINT and SIGTERM let the server finish what it began; a second one hurries it."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {sign: signal.signal(sign, server.handle_exit) for sign in signals}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


def _check(parsed: Arguments) -> None:
    if not 0 <= parsed.port < 2**16:
        raise ConfigError(f"port is {parsed.port}; must be in 0..{2**16 - 1}")
    for name in ("body_bytes", "waiting", "deadline_s"):
        if not getattr(parsed, name) > 0:
            raise ConfigError(f"{name.replace('_', '-')} is {getattr(parsed, name)}; must be > 0")
    if not 0 <= parsed.window_ms < float("inf"):
        raise ConfigError(f"window-ms is {parsed.window_ms}; must be >= 0 and finite")


def _ready(parsed: Arguments) -> Decider:
    decider = load(parsed.bundle, parsed.runtime, warm=False)
    if decider.runtime.name == "jax" and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        _keep_compiled()
    decider.warm_up(together=True)
    return decider


@contextmanager
def _settled() -> Iterator[None]:
    """Without what makes Python let some requests wait much longer than others."""
    gc.collect()
    gc.freeze()  # or a full collection looks at every object of every package: 0.1 s
    # A thread that computed waits for the interpreter while requests are read: 5 ms, unless told.
    sys.setswitchinterval(0.0005)
    yield
    gc.unfreeze()


def _keep_compiled() -> None:
    """Lets jax keep what it compiles, so that the next start is quick."""
    import jax

    settings: dict[str, Any] = {
        "jax_compilation_cache_dir": str(cache_folder()),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
