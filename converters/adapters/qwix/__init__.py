"""LoRA of JAX's libraries: qwix's, and so tunix's and MaxText's; openpi's; ``flax.nnx.LoRA``.

Orientation: ``kernel_lora_a`` (in, r), ``kernel_lora_b`` (r, out); with scanned layers one axis
more. Others call the factors of a module ``lora_a`` and ``lora_b``.
"""

from jaxmix.converters.adapters.qwix.reading import is_qwix, qwix_adapter, read_qwix

__all__ = ["is_qwix", "qwix_adapter", "read_qwix"]
