"""Where JAX's model libraries keep the weights of Hugging Face's models: one table a library.

A table is a `jaxmix.layout.Layout`: pure data. `jaxmix.layout` asks for `TABLES`, the one list.
"""

from jaxmix.converters.layouts import (
    bonsai,
    easydel,
    flax_transformers,
    gemma,
    keras_hub,
    levanter,
    maxtext,
    openpi,
    torchax,
    tunix,
)
from jaxmix.placement.layout import Layout

__all__ = ["TABLES"]

_LIBRARIES = (
    bonsai,
    easydel,
    flax_transformers,
    gemma,
    keras_hub,
    levanter,
    maxtext,
    openpi,
    torchax,
    tunix,
)

TABLES: dict[str, Layout] = {
    table.name: table for library in _LIBRARIES for table in library.TABLES
}
