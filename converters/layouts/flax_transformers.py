"""The Flax models of transformers 4 (BERT, GPT-2, Llama, …): Hugging Face's names, Flax's leaves.

Kernels are (in, out), except those of GPT-2, which are (out, in), as the size of their bias shows.
The norms of Llama have a ``weight``.
Source: ``transformers/models/*/modeling_flax_*.py``, up to 4.57.
"""

from jaxmix.placement.layout import NAMES, Layout

__all__ = ["TABLES"]

TABLES = (Layout("flax_transformers", NAMES.rules, by_name=True),)
