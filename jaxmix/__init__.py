"""Mix adapters of different kinds in JAX: an adapter is a function of weights, and so is a mix.

>>> import jaxmix
>>> jaxmix.mix()
mix of nothing: the identity
"""

from jaxmix import errors, families, layout, models
from jaxmix.adapter import Adapter
from jaxmix.bank import Bank
from jaxmix.combining import combine
from jaxmix.converters.adapters.loading import load
from jaxmix.converters.adapters.mixfile import save
from jaxmix.converters.adapters.peft.export import export_peft
from jaxmix.converters.merging import merge_checkpoint, verify_merge
from jaxmix.errors import JaxmixError
from jaxmix.layout import Layout, Rule
from jaxmix.low_rank import to_lora
from jaxmix.mixing import Mix, compose, mix
from jaxmix.placement.quantized import requantized
from jaxmix.training import fit, init, labels, trainable
from jaxmix.unmerged import Factored, attach, detach, explain, factored

__all__ = [
    "Adapter",
    "Bank",
    "Factored",
    "JaxmixError",
    "Layout",
    "Mix",
    "Rule",
    "attach",
    "combine",
    "compose",
    "detach",
    "errors",
    "explain",
    "export_peft",
    "factored",
    "families",
    "fit",
    "init",
    "labels",
    "layout",
    "load",
    "merge_checkpoint",
    "mix",
    "models",
    "requantized",
    "save",
    "to_lora",
    "trainable",
    "verify_merge",
]


def __dir__() -> list[str]:
    """The public names, and those that every module has."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
