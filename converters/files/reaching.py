"""Asking the hub without waiting for minutes: whether it answers at all is found out first.

Its client tries each file six times, with growing pauses, when there is no network; and one adapter
is several files.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["asking", "is_reachable", "log"]

# The command line shows it on stderr.
log = logging.getLogger("jaxmix.hub")

_SECONDS = 5.0


def is_reachable() -> bool:
    """Whether the hub answers within some seconds, with whatever status.

    Returns:
        Whether it does.
    """
    import huggingface_hub
    from huggingface_hub import constants

    try:
        # By the client's own session, which knows proxies and certificates.
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:  # its kinds differ from version to version of the hub's client
        return False
    return True


@contextmanager
def asking(hub_id: str) -> Iterator[None]:
    """Logs that the hub is asked. If it does not answer, its client looks in its local cache alone.

    Args:
        hub_id: ``owner/name``.

    Yields:
        Nothing.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield
        return
    log.info("asking the Hugging Face hub for %s", hub_id)
    if is_reachable():
        yield
        return
    log.info("the hub does not answer; looking in its local cache")
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False
