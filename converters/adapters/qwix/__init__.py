"""LoRA of JAX libraries: qwix (with tunix and MaxText), openpi, and ``flax.nnx.LoRA``.

Orientation: ``kernel_lora_a`` (in, r), ``kernel_lora_b`` (r, out); scanned layers have one more
axis. openpi and flax call the factors of a module ``lora_a`` and ``lora_b``.
"""

from jaxmix.converters.adapters.qwix.reading import is_qwix, qwix_adapter, read_qwix

__all__ = ["is_qwix", "qwix_adapter", "read_qwix"]
