"""Decoders as an NNX module with Hugging Face's names: Llama, Mistral, Qwen2, Qwen3, Gemma.

An example of a path is ``model.layers.0.self_attn.q_proj.kernel``. Kernels are (in, out) as in
Flax, the transpose of PyTorch's weight.
"""

from functools import partial
from typing import Any, ClassVar

from flax import nnx
from jaxtyping import Array, Float, Integer

from jaxmix.models.cache import Cache
from jaxmix.models.causal import CausalLM, Context
from jaxmix.models.config import DecoderConfig
from jaxmix.models.layers import Embed, Layer, Linear, RMSNorm
from jaxmix.models.tree import LeafPath

__all__ = ["Decoder"]


class Backbone(nnx.Module):
    """The decoder without its head, which maps tokens to hidden states."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        sizes = (config.vocab_size, config.hidden_size)
        self.embed_tokens = Embed(*sizes, dtype, rngs, config.embed_scale)
        self.layers = nnx.List(Layer(config, dtype, rngs) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config, dtype)
        self.config = config

    def __call__(
        self,
        tokens: Integer[Array, "b t"],
        positions: Integer[Array, "b t"] | None,
        cache: Cache | None,
    ) -> tuple[Float[Array, "b t D"], Cache | None]:
        """Returns the hidden states after the last norm, and the cache including these tokens."""
        context, config = Context.of(tokens, positions, cache), self.config
        masks = {window: context.mask(window) for window in set(config.windows)}
        x = self.embed_tokens(tokens)
        angles = config.rope(context.positions, x.dtype)
        windows = zip(self.layers, config.windows, strict=True)
        layers = [partial(layer, angles=angles, mask=masks[window]) for layer, window in windows]
        x, cache = context.through(x, layers)
        return self.norm(x), cache


class Decoder(CausalLM):
    """A causal language model, which maps tokens to logits.

    The leaves have Hugging Face's names and Flax's axis order: ``model.embed_tokens.embedding`` (V,
    D), ``model.layers.0.self_attn.q_proj.kernel`` (in, out) and ``.bias`` (out),
    ``model.norm.scale`` (D), and ``lm_head.kernel`` (D, V) unless the config ties it.

    Args:
        config: The config.
        dtype: The dtype of the leaves, and thus of the activations.
        rngs: ``nnx.Rngs`` for random weights; use `load` or `from_torch` for trained ones.

    Raises:
        ShapeError: On a call, if the tokens are not (b, t), the positions do not have their shape,
            or the cache has another number of rows or too few free slots.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxmix.models import read_config
        >>> config = read_config(
        ...     dict(model_type="llama", vocab_size=11, hidden_size=8, intermediate_size=12)
        ...     | dict(num_hidden_layers=2, num_attention_heads=4)
        ... )
        >>> model = Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
        >>> model(jnp.array([[1, 2, 3]])).shape
        (1, 3, 11)
        >>> model.model.layers[0].self_attn.q_proj.kernel.shape
        (8, 8)

    Source: ``transformers/models/{llama,mistral,qwen2,qwen3,gemma}/modeling_*.py``.
    """

    EMBEDDING: ClassVar[LeafPath] = ("model", "embed_tokens", "embedding")

    def __init__(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.model = Backbone(config, dtype, rngs)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, False, dtype, rngs)
        self.config = config

    @property
    def embed(self) -> Embed:
        return self.model.embed_tokens

    def hidden(
        self,
        tokens: Integer[Array, "b t"],
        *,
        positions: Integer[Array, "b t"] | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "b t D"], Cache | None]:
        return self.model(tokens, positions, cache)
