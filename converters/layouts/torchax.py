"""torchax: PyTorch's own modules on JAX arrays, so that names and axes are PyTorch's.

Source: ``torchax.interop.extract_jax``, which gives the state_dict; torchax 0.0.13.
"""

from jaxmix.placement.layout import TORCH, Layout

__all__ = ["TABLES"]

TABLES = (Layout("torchax", TORCH.rules, by_name=True),)
