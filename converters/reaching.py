"""Whether the hub answers: asked once and briefly, before its client retries for minutes."""

import logging

__all__ = ["is_reachable", "log"]

# What the command line shows on stderr: that the network is asked takes time.
log = logging.getLogger("jaxmix.hub")

_SECONDS = 5.0


def is_reachable() -> bool:
    """Whether the hub answers within some seconds, with whatever it says.

    Returns:
        Whether it does; False in the client's offline mode too.
    """
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        # By the client's own session, which knows proxies and certificates.
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:  # of kinds that differ with the client's version
        return False
    return True
