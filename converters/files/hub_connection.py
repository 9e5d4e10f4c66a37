"""Checks that the hub answers before using it, to avoid minutes of retries without a network.

Without a network, the hub's client tries each file six times with growing pauses, and an adapter
consists of several files.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["hub_request", "is_reachable", "log"]

# The command line prints these messages to stderr.
log = logging.getLogger("jaxmix.hub")

_SECONDS = 5.0


def is_reachable() -> bool:
    """Whether the hub answers within a few seconds, with any status.

    Returns:
        True if it answers.
    """
    import huggingface_hub
    from huggingface_hub import constants

    try:
        # The client's own session is configured with proxies and certificates.
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:  # the client's error types differ between versions
        return False
    return True


@contextmanager
def hub_request(hub_id: str) -> Iterator[None]:
    """Logs a request to the hub. If the hub does not answer, the body uses only the local cache.

    Args:
        hub_id: ``owner/name``.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield
        return
    log.info("requesting %s from the Hugging Face hub", hub_id)
    if is_reachable():
        yield
        return
    log.info("the hub does not answer; using its local cache")
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False
