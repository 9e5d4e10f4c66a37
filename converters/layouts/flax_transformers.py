"""The Flax models of transformers 4 (BERT, GPT-2, Llama, …): Hugging Face's names, Flax's leaves.

Kernels are (in, out), but GPT-2's, whose bias tells that they lie the other way; the norms of
Llama are a ``weight`` all the same.
Source: ``transformers/models/*/modeling_flax_*.py``, up to 4.57.
"""

from jaxmix.placement.layout import NAMES, Layout

__all__ = ["TABLES"]

TABLES = (Layout("flax_transformers", NAMES.rules, by_name=True),)
