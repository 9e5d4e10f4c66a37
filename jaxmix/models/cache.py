"""The cache of keys and values for generation."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmix.models.config import DecoderConfig, GPT2Config
from jaxmix.pytrees import register_dataclass

__all__ = ["Cache"]


@register_dataclass
@dataclass(frozen=True)
class Cache:
    """The keys and values of previous tokens, in a fixed number of slots.

    Args:
        keys: The keys of each layer after the rotary embedding (b, kv heads, s, d).
        values: The values of each layer (b, kv heads, s, d).
        visible: Which slots hold a token that may be attended to (b, s), which padding may not.
        length: The number of used slots, equal in all rows.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix.models import read_config
        >>> config = read_config(
        ...     dict(model_type="llama", vocab_size=11, hidden_size=8, intermediate_size=12)
        ...     | dict(num_hidden_layers=2, num_attention_heads=4)
        ... )
        >>> cache = Cache.empty(config, 1, 5, jnp.float32)
        >>> cache.keys[1].shape, int(cache.length)
        ((1, 4, 5, 2), 0)

    Source: ``transformers.StaticCache``.
    """

    keys: tuple[Float[Array, "b k s d"], ...]
    values: tuple[Float[Array, "b k s d"], ...]
    visible: Bool[Array, "b s"]
    length: Int[Array, ""]

    @staticmethod
    def empty(config: DecoderConfig | GPT2Config, rows: int, slots: int, dtype: Any) -> "Cache":
        """Returns an empty cache.

        Args:
            config: The model's config.
            rows: The number of rows b.
            slots: The number of slots s, at least the number of tokens including padding.
            dtype: The dtype of the activations, ``model.dtype``.

        Returns:
            A cache of zeros.
        """
        shape = (rows, config.num_key_value_heads, slots, config.head_dim)
        zeros = tuple(jnp.zeros(shape, dtype) for _ in range(config.num_hidden_layers))
        return Cache(zeros, zeros, jnp.zeros((rows, slots), bool), jnp.zeros((), jnp.int32))
