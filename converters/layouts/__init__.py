"""The layouts of JAX model libraries: where they store the weights of Hugging Face models.

A layout is pure data, a `jaxmix.layout.Layout`. `jaxmix.layout` imports the list `TABLES`.
"""

from jaxmix.converters.layouts import (
    bonsai,
    easydel,
    flax_transformers,
    flax_unet,
    gemma,
    keras_hub,
    levanter,
    maxdiffusion_flux,
    maxdiffusion_video,
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
    flax_unet,
    gemma,
    keras_hub,
    levanter,
    maxdiffusion_flux,
    maxdiffusion_video,
    maxtext,
    openpi,
    torchax,
    tunix,
)

TABLES: dict[str, Layout] = {
    table.name: table for library in _LIBRARIES for table in library.TABLES
}
