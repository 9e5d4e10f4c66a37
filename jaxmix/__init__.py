"""Mix adapters of different kinds in JAX: an adapter is a function over weights, a mix is one too.

>>> import jaxmix
>>> jaxmix.mix()
mix of nothing: the identity
"""

from jaxmix import errors, families, layout, models
from jaxmix.adapter import Adapter
from jaxmix.bank import Bank
from jaxmix.combine import combine
from jaxmix.converters.loading import load
from jaxmix.converters.merging import merge_checkpoint, verify_merge
from jaxmix.converters.mixfile import save
from jaxmix.converters.peft.export import export_peft
from jaxmix.errors import JaxmixError
from jaxmix.factored import Factored, attach, detach, explain, factored
from jaxmix.layout import Layout, Rule
from jaxmix.low_rank import to_lora
from jaxmix.mix import Mix, compose, mix
from jaxmix.quantized import requantized
from jaxmix.training import fit, init, labels, trainable

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
