"""jaxmix's own format: a mix as a readable mix.json and mix.safetensors.

::

    {
      "format": "jaxmix",
      "version": 1,
      "kind": "mix",
      "parts": [
        {
          "name": "lora",
          "strength": 0.6,
          "source": "owner/name@main",
          "sha256": "…",
          "updates": {
            "model.proj": {"family": "LoRA", "a": {"tensor": "0/model.proj/a"}, …}
          }
        },
        {"source": "owner/other", "revision": "…", "strength": 0.5}
      ]
    }

A part either has its updates, whose arrays are in mix.safetensors, or is read from its source: a
path below the folder of mix.json, or a hub id (``./owner/name`` is a path), with ``subfolder``,
``filename``, ``format``, ``ignore`` and ``options`` as for `jaxmix.load`. A file whose parts are
all read from sources is a recipe. Names, strengths and the order of parts may be edited; the
updates of a part are protected by its hash.
"""

from jaxmix.converters.adapters.mixfile.hashing import fingerprint
from jaxmix.converters.adapters.mixfile.reading import is_mix, read_mix
from jaxmix.converters.adapters.mixfile.record import MIX_FILE, TENSORS_FILE, VERSION
from jaxmix.converters.adapters.mixfile.writing import is_saved, save

__all__ = [
    "MIX_FILE",
    "TENSORS_FILE",
    "VERSION",
    "fingerprint",
    "is_mix",
    "is_saved",
    "read_mix",
    "save",
]
