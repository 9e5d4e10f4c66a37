"""torchax: PyTorch's own modules on JAX arrays, with PyTorch's names and axes.

Source: ``torchax.interop.extract_jax``, which returns the state_dict; torchax 0.0.13.
"""

from jaxmix.placement.layout import TORCH, Layout

__all__ = ["TABLES"]

TABLES = (Layout("torchax", TORCH.rules, by_name=True),)
