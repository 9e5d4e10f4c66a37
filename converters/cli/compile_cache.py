"""Keeps the program's compiled functions from one run to the next."""

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

__all__ = ["cache_folder", "use_compile_cache"]

# JAX reads these when it is imported.
_FOLDER, _SECONDS = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def use_compile_cache(environment: MutableMapping[str, str]) -> None:
    """Lets JAX keep compiled functions in the user's cache folder, before JAX is imported.

    `jaxmix merge` of a small model compiles for half a second otherwise. Settings of JAX that the
    environment has are not changed; a folder that can't be written is not used.

    Args:
        environment: The process's environment.
    """
    if _FOLDER in environment:
        return
    folder = cache_folder(environment)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK | os.X_OK):
        environment[_FOLDER] = str(folder)
        environment.setdefault(_SECONDS, "0")


def cache_folder(environment: MutableMapping[str, str]) -> Path:
    """Returns the folder for compiled functions: ``$XDG_CACHE_HOME/jaxmix``, or the system's own.

    Example:
        >>> cache_folder({"XDG_CACHE_HOME": "/tmp/cache"}).as_posix()
        '/tmp/cache/jaxmix/compiled'
    """
    if chosen := environment.get("XDG_CACHE_HOME"):
        return Path(chosen) / "jaxmix" / "compiled"
    within = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return Path.home() / within / "jaxmix" / "compiled"
