"""Counts what JAX traces and compiles, on every JAX that is allowed."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jax import monitoring

TRACED = "/jax/core/compile/jaxpr_trace_duration"
COMPILED = "/jax/core/compile/backend_compile_duration"


@contextmanager
def timed_events() -> Iterator[Counter[str]]:
    """Counts, by name, the events within the context whose duration JAX reports."""
    counts: Counter[str] = Counter()
    is_open = True

    def listen(event: str, duration: float, **_: Any) -> None:
        if is_open:
            counts[event] += 1

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counts
    finally:
        is_open = False
        # JAX 0.8 has no public way to remove a listener; this one counts no more.
        if hasattr(monitoring, "unregister_event_duration_listener"):
            monitoring.unregister_event_duration_listener(listen)
