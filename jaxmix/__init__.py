"""Mix adapters of different kinds in JAX: an adapter is a function of weights, and so is a mix.

>>> import jaxmix
>>> jaxmix.mix()
mix of nothing: the identity
"""

from typing import TYPE_CHECKING

import jaxmix.tables  # noqa: F401 -- registers the tables of converters/
from jaxmix.first_use import importer

# For type checkers. At run time a name is imported when it is first used: `import jaxmix` and
# `jaxmix --help` need neither flax nor the converters.
if TYPE_CHECKING:
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

# Each public name, and the module that has it or that it is.
_HOMES = {
    "Adapter": "jaxmix.adapter",
    "Bank": "jaxmix.bank",
    "Factored": "jaxmix.unmerged",
    "JaxmixError": "jaxmix.errors",
    "Layout": "jaxmix.layout",
    "Mix": "jaxmix.mixing",
    "Rule": "jaxmix.layout",
    "attach": "jaxmix.unmerged",
    "combine": "jaxmix.combining",
    "compose": "jaxmix.mixing",
    "detach": "jaxmix.unmerged",
    "errors": "jaxmix.errors",
    "explain": "jaxmix.unmerged",
    "export_peft": "jaxmix.converters.adapters.peft.export",
    "factored": "jaxmix.unmerged",
    "families": "jaxmix.families",
    "fit": "jaxmix.training",
    "init": "jaxmix.training",
    "labels": "jaxmix.training",
    "layout": "jaxmix.layout",
    "load": "jaxmix.converters.adapters.loading",
    "merge_checkpoint": "jaxmix.converters.merging",
    "mix": "jaxmix.mixing",
    "models": "jaxmix.models",
    "requantized": "jaxmix.placement.quantized",
    "save": "jaxmix.converters.adapters.mixfile",
    "to_lora": "jaxmix.low_rank",
    "trainable": "jaxmix.training",
    "verify_merge": "jaxmix.converters.merging",
}


__getattr__ = importer("jaxmix", _HOMES)


def __dir__() -> list[str]:
    """The public names, and those that every module has."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
