"""AdapterHub's folders: an adapter_config.json of its own, recognised and refused by name."""

from pathlib import Path
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.lycoris.files import json_of
from jaxmix.errors import UnsupportedError

__all__ = ["is_adapterhub", "read_adapterhub"]

_CONFIG_FILE = "adapter_config.json"


def is_adapterhub(path: Path) -> bool:
    """Whether it is a folder that AdapterHub's ``adapters`` wrote.

    Its config nests that of the method under ``config``, and names no ``peft_type``.
    """
    return bool(_config(path)) and path.is_dir()


def read_adapterhub(path: Path, name: str, strength: Any = 1.0) -> Adapter:
    """Refuses the adapter in a folder of AdapterHub's, and says what it is.

    Args:
        path: the folder.
        name: what the adapter would be called.
        strength: the strength with which it would enter a mix.

    Raises:
        UnsupportedError: always.

    Example:
        >>> read_adapterhub(Path("no/such/folder"), "style")
        Traceback (most recent call last):
        ...
        jaxmix.errors.UnsupportedError: no/such/folder was saved by AdapterHub's adapters: ...

    Source: adapter-hub/adapters, ``src/adapters/loading.py``.
    """
    config = _config(path)
    inner = config.get("config")
    kind = inner.get("architecture") or "bottleneck" if isinstance(inner, dict) else inner
    model = config.get("model_name") or config.get("model_type")
    raise UnsupportedError(
        f"{path} was saved by AdapterHub's adapters: {kind or 'an adapter'} for {model}. Its names "
        "are those of AdapterHub's own modules, which jaxmix does not read. Load it there, merge "
        "it with model.merge_adapter(name), and save the model; or train it with PEFT."
    )


def _config(path: Path) -> dict[str, Any]:
    """The config, if it is AdapterHub's; else an empty dict."""
    try:
        found = json_of((path / _CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return {}
    is_theirs = isinstance(found, dict) and "config" in found and "peft_type" not in found
    return found if is_theirs and ("model_name" in found or "model_type" in found) else {}
