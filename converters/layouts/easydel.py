"""EasyDeL: NNX models whose leaves keep Hugging Face's names, kernels (in, out).

Source: ``easydel/modules/*/modeling_*.py``; easydel 0.3.0.
"""

from jaxmix.layout import FLAX, Layout

__all__ = ["TABLES"]

TABLES = (Layout("easydel", FLAX.rules, by_name=True),)
