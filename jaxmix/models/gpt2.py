"""GPT-2 as an NNX module whose tree uses Hugging Face's names.

An example of a path is ``transformer.h.0.attn.c_attn.kernel``. Kernels are (in, out), and so are
PyTorch's weights of GPT-2's Conv1D. Only ``lm_head`` is a Linear with a transposed weight.
"""

from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Integer

from jaxmix.errors import ShapeError
from jaxmix.models.cache import Cache
from jaxmix.models.causal import CausalLM, Context
from jaxmix.models.config import GPT2Config
from jaxmix.models.layers import (
    ACTIVATIONS,
    Embed,
    LayerNorm,
    Linear,
    Past,
    attend,
    heads_of,
    remember,
)
from jaxmix.models.tree import LeafPath

__all__ = ["GPT2"]


class Attention(nnx.Module):
    """Attention with one projection for queries, keys and values."""

    def __init__(self, config: GPT2Config, scale: float, dtype: Any, rngs: nnx.Rngs):
        hidden = config.hidden_size
        self.c_attn = Linear(hidden, 3 * hidden, True, dtype, rngs)
        self.c_proj = Linear(hidden, hidden, True, dtype, rngs)
        self.head_dim, self.scale = config.head_dim, scale

    def __call__(
        self, x: Float[Array, "b t D"], past: Past | None, mask: Bool[Array, "b t s"]
    ) -> tuple[Float[Array, "b t D"], tuple[Array, Array]]:
        """Returns the attention output, and the keys and values (b, h, s, d)."""
        q, k, v = (heads_of(part, self.head_dim) for part in jnp.split(self.c_attn(x), 3, axis=-1))
        keys, values = remember(past, k.swapaxes(1, 2), v.swapaxes(1, 2))
        return self.c_proj(attend(q, keys, values, mask, self.scale)), (keys, values)


class MLP(nnx.Module):
    """``proj(act(fc x))``."""

    def __init__(self, config: GPT2Config, dtype: Any, rngs: nnx.Rngs):
        self.c_fc = Linear(config.hidden_size, config.intermediate_size, True, dtype, rngs)
        self.c_proj = Linear(config.intermediate_size, config.hidden_size, True, dtype, rngs)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "b t D"]) -> Float[Array, "b t D"]:
        return self.c_proj(ACTIVATIONS[self.activation](self.c_fc(x)))


class Block(nnx.Module):
    """Attention and feed-forward with pre-norms and residual connections."""

    def __init__(self, config: GPT2Config, scale: float, dtype: Any, rngs: nnx.Rngs):
        norm = partial(LayerNorm, config.hidden_size, config.layer_norm_eps, dtype)
        self.ln_1, self.ln_2 = norm(), norm()
        self.attn = Attention(config, scale, dtype, rngs)
        self.mlp = MLP(config, dtype, rngs)

    def __call__(
        self, x: Float[Array, "b t D"], past: Past | None, mask: Bool[Array, "b t s"]
    ) -> tuple[Float[Array, "b t D"], tuple[Array, Array]]:
        seen, memory = self.attn(self.ln_1(x), past, mask)
        x = x + seen
        return x + self.mlp(self.ln_2(x)), memory


class Transformer(nnx.Module):
    """GPT-2 without its head, which maps tokens to hidden states."""

    def __init__(self, config: GPT2Config, dtype: Any, rngs: nnx.Rngs):
        self.wte = Embed(config.vocab_size, config.hidden_size, dtype, rngs)
        self.wpe = Embed(config.max_position_embeddings, config.hidden_size, dtype, rngs)
        self.h = nnx.List(Block(config, scale, dtype, rngs) for scale in config.score_scales)
        self.ln_f = LayerNorm(config.hidden_size, config.layer_norm_eps, dtype)

    def __call__(
        self,
        tokens: Integer[Array, "b t"],
        positions: Integer[Array, "b t"] | None,
        cache: Cache | None,
    ) -> tuple[Float[Array, "b t D"], Cache | None]:
        """Returns the hidden states after the last norm, and the cache including these tokens."""
        context = Context.of(tokens, positions, cache)
        x = self.wte(tokens)
        # Padding has position -1. No token attends to it, so its embedding does not matter.
        x = x + self.wpe(jnp.maximum(context.positions, 0)).astype(x.dtype)
        mask = context.mask()
        x, cache = context.through(x, [partial(block, mask=mask) for block in self.h])
        return self.ln_f(x), cache


class GPT2(CausalLM):
    """GPT-2 with its language model head, which maps tokens to logits.

    The leaves have Hugging Face's names: ``transformer.wte.embedding`` (V, D),
    ``transformer.wpe.embedding`` (positions, D), ``transformer.h.0.attn.c_attn.kernel`` (in, out)
    and ``.bias`` (out), ``transformer.ln_f.scale`` (D) and ``.bias``, and ``lm_head.kernel`` (D, V)
    unless the config ties it, as all of OpenAI's do.

    Args:
        config: The config.
        dtype: The dtype of the leaves, and thus of the activations.
        rngs: ``nnx.Rngs`` for random weights; use `load` or `from_torch` for trained ones.

    Raises:
        ShapeError: On a call, if the tokens are not (b, t), there are more tokens than positions,
            the positions do not have their shape, or the cache has another number of rows or too
            few free slots.
            Positions beyond the learned ones give NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxmix.models import read_config
        >>> config = read_config(
        ...     dict(model_type="gpt2", vocab_size=11, n_positions=32, n_embd=8)
        ...     | dict(n_layer=2, n_head=2)
        ... )
        >>> model = GPT2(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
        >>> model(jnp.array([[1, 2, 3]])).shape
        (1, 3, 11)
        >>> model.transformer.h[0].attn.c_attn.kernel.shape
        (8, 24)

    Source: ``transformers/models/gpt2/modeling_gpt2.py``, ``GPT2LMHeadModel``.
    """

    EMBEDDING: ClassVar[LeafPath] = ("transformer", "wte", "embedding")

    def __init__(self, config: GPT2Config, *, dtype: Any, rngs: nnx.Rngs):
        self.transformer = Transformer(config, dtype, rngs)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, False, dtype, rngs)
        self.config = config

    @property
    def embed(self) -> Embed:
        return self.transformer.wte

    @property
    def longest(self) -> int:
        return self.config.max_position_embeddings

    def hidden(
        self,
        tokens: Integer[Array, "b t"],
        *,
        positions: Integer[Array, "b t"] | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "b t D"], Cache | None]:
        if tokens.ndim == 2 and positions is None and tokens.shape[1] > self.longest:
            raise ShapeError(
                f"tokens have shape {tokens.shape}, but this GPT-2 has only {self.longest} "
                "positions. Truncate the text."
            )
        return self.transformer(tokens, positions, cache)
