"""BERT's encoder in NNX whose tree keeps Hugging Face's names.

Paths read ``encoder.layer.0.attention.self.query.kernel``. Flax's orientation: a kernel is (in,
out), the transpose of PyTorch's weight.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Integer

from jaxmix.errors import JaxmixError, ShapeError
from jaxmix.models.causal import check_tokens
from jaxmix.models.config import BertConfig
from jaxmix.models.layers import ACTIVATIONS, Embed, LayerNorm, Linear, attend, heads_of

__all__ = ["Bert", "sentence_embeddings"]


class Embeddings(nnx.Module):
    """The sum of a token's, its type's and its position's row, normed."""

    def __init__(self, config: BertConfig, dtype: Any, rngs: nnx.Rngs):
        embed = partial(Embed, size=config.hidden_size, dtype=dtype, rngs=rngs)
        self.word_embeddings = embed(config.vocab_size)
        self.position_embeddings = embed(config.max_position_embeddings)
        self.token_type_embeddings = embed(config.type_vocab_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps, dtype)

    def __call__(
        self,
        tokens: Integer[Array, "b t"],
        token_types: Integer[Array, "b t"],
        positions: Integer[Array, "b t"],
    ) -> Float[Array, "b t D"]:
        x = self.word_embeddings(tokens)
        x = x + self.token_type_embeddings(token_types).astype(x.dtype)
        return self.LayerNorm(x + self.position_embeddings(positions).astype(x.dtype))


class SelfAttention(nnx.Module):
    """What the tokens take from all that are no padding."""

    def __init__(self, config: BertConfig, dtype: Any, rngs: nnx.Rngs):
        hidden = config.hidden_size
        self.query = Linear(hidden, hidden, True, dtype, rngs)
        self.key = Linear(hidden, hidden, True, dtype, rngs)
        self.value = Linear(hidden, hidden, True, dtype, rngs)
        self.head_dim = config.head_dim

    def __call__(
        self, x: Float[Array, "b t D"], mask: Bool[Array, "b t s"]
    ) -> Float[Array, "b t D"]:
        q, k, v = (heads_of(proj(x), self.head_dim) for proj in (self.query, self.key, self.value))
        return attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask, self.head_dim**-0.5)


class Output(nnx.Module):
    """``norm(dense y + x)``: what a part gives is added to what went in, and normed after."""

    def __init__(self, in_size: int, config: BertConfig, dtype: Any, rngs: nnx.Rngs):
        self.dense = Linear(in_size, config.hidden_size, True, dtype, rngs)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps, dtype)

    def __call__(self, y: Float[Array, "b t i"], x: Float[Array, "b t D"]) -> Float[Array, "b t D"]:
        return self.LayerNorm(self.dense(y) + x)


class Attention(nnx.Module):
    """Attention and its output."""

    def __init__(self, config: BertConfig, dtype: Any, rngs: nnx.Rngs):
        self.self = SelfAttention(config, dtype, rngs)
        self.output = Output(config.hidden_size, config, dtype, rngs)

    def __call__(
        self, x: Float[Array, "b t D"], mask: Bool[Array, "b t s"]
    ) -> Float[Array, "b t D"]:
        return self.output(self.self(x, mask), x)


class Intermediate(nnx.Module):
    """``act(dense x)``."""

    def __init__(self, config: BertConfig, dtype: Any, rngs: nnx.Rngs):
        self.dense = Linear(config.hidden_size, config.intermediate_size, True, dtype, rngs)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "b t D"]) -> Float[Array, "b t F"]:
        return ACTIVATIONS[self.activation](self.dense(x))


class Block(nnx.Module):
    """Attention and feed-forward."""

    def __init__(self, config: BertConfig, dtype: Any, rngs: nnx.Rngs):
        self.attention = Attention(config, dtype, rngs)
        self.intermediate = Intermediate(config, dtype, rngs)
        self.output = Output(config.intermediate_size, config, dtype, rngs)

    def __call__(
        self, x: Float[Array, "b t D"], mask: Bool[Array, "b t s"]
    ) -> Float[Array, "b t D"]:
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)


class Encoder(nnx.Module):
    """The blocks, one after another."""

    def __init__(self, config: BertConfig, dtype: Any, rngs: nnx.Rngs):
        self.layer = nnx.List(Block(config, dtype, rngs) for _ in range(config.num_hidden_layers))

    def __call__(
        self, x: Float[Array, "b t D"], mask: Bool[Array, "b t s"]
    ) -> Float[Array, "b t D"]:
        for block in self.layer:
            x = block(x, mask)
        return x


class Pooler(nnx.Module):
    """``tanh(dense h₀)`` of the first token."""

    def __init__(self, config: BertConfig, dtype: Any, rngs: nnx.Rngs):
        self.dense = Linear(config.hidden_size, config.hidden_size, True, dtype, rngs)

    def __call__(self, hidden: Float[Array, "b t D"]) -> Float[Array, "b D"]:
        return jnp.tanh(self.dense(hidden[:, :1]))[:, 0]


class Bert(nnx.Module):
    """BERT's encoder: tokens to hidden states. No head is built on it.

    Its leaves have the names of Hugging Face's ``BertModel``:
    ``embeddings.word_embeddings.embedding`` (V, D),
    ``encoder.layer.0.attention.self.query.kernel`` (in, out) and ``.bias`` (out),
    ``encoder.layer.0.output.LayerNorm.scale`` (D), ``pooler.dense.kernel`` (D, D) where there is
    one.

    Args:
        config: What it computes.
        dtype: Of the leaves, and so of the activations.
        rngs: ``nnx.Rngs``, for random weights; `load` and `from_torch` give real ones.

    Raises:
        ShapeError: On a call, by tokens that are not (b, t) or more than there are positions, or
            what comes with them being unlike them.
        JaxmixError: Raised by `pooled` if the model has no pooler.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxmix.models import read_config
        >>> config = read_config(
        ...     dict(model_type="bert", vocab_size=11, hidden_size=8, intermediate_size=12)
        ...     | dict(num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32)
        ... )
        >>> model = Bert(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
        >>> hidden = model(jnp.array([[1, 2, 0]]), mask=jnp.array([[True, True, False]]))
        >>> hidden.shape, model.pooled(hidden).shape
        ((1, 3, 8), (1, 8))

    Source: ``transformers/models/bert/modeling_bert.py``, ``BertModel``.
    """

    def __init__(self, config: BertConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, dtype, rngs)
        self.encoder = Encoder(config, dtype, rngs)
        if config.pooler:
            self.pooler = Pooler(config, dtype, rngs)
        self.config = config

    @property
    def dtype(self) -> Any:
        """The dtype of the activations: the embedding's."""
        return self.embeddings.word_embeddings.embedding[...].dtype

    def __call__(
        self,
        tokens: Integer[Array, "b t"],
        *,
        mask: Bool[Array, "b t"] | None = None,
        token_types: Integer[Array, "b t"] | None = None,
        positions: Integer[Array, "b t"] | None = None,
    ) -> Float[Array, "b t D"]:
        """The hidden states after the last layer.

        Args:
            tokens: The tokens; one beyond the vocabulary gives NaN.
            mask: Which of them are no padding; all by default. Nobody sees padding; what is made of
                it is of no use.
            token_types: 0 for the first text, 1 for the second; all 0 by default.
            positions: Where each token stands; from 0 by default.

        Returns:
            ``last_hidden_state`` of transformers, (b, t, D).

        Raises:
            ShapeError: If shapes do not fit together.
        """
        given = {"mask": mask, "token_types": token_types, "positions": positions}
        check_tokens(tokens, given)
        count, longest = tokens.shape[1], self.config.max_position_embeddings
        if positions is None and count > longest:
            raise ShapeError(
                f"tokens have shape {tokens.shape}, but this BERT has learned {longest} positions "
                "only. Cut the text."
            )
        if mask is not None and mask.dtype != bool:
            raise ShapeError(
                f"mask is {mask.dtype}, expected bool: true where a token is no padding. Of a "
                "tokenizer's attention_mask it is attention_mask == 1."
            )
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), tokens.shape)
        types = jnp.zeros_like(tokens) if token_types is None else token_types
        seen = jnp.ones(tokens.shape, bool) if mask is None else mask
        seen = jnp.broadcast_to(seen[:, None, :], (*tokens.shape, count))
        return self.encoder(self.embeddings(tokens, types, positions), seen)

    def pooled(self, hidden: Float[Array, "b t D"]) -> Float[Array, "b D"]:
        """``tanh(dense h₀)`` of the first token: ``pooler_output`` of transformers."""
        if not self.config.pooler:
            raise JaxmixError(
                "this BERT has no pooler: its file holds none. For a vector of a text take "
                "jaxmix.models.sentence_embeddings, or hidden[:, 0]."
            )
        return self.pooler(hidden)


def sentence_embeddings(
    model: Bert,
    tokens: Integer[Array, "b t"],
    *,
    mask: Bool[Array, "b t"] | None = None,
    token_types: Integer[Array, "b t"] | None = None,
) -> Float[Array, "b D"]:
    """A vector of length 1 for each text: the mean of its tokens' hidden states, ``m/‖m‖``.

    This is what the Pooling (mean) and Normalize modules of sentence-transformers do after a BERT;
    ``modules.json`` and ``1_Pooling/config.json`` of a sentence encoder's folder say whether they
    are what it was trained with. All-MiniLM-L6-v2 was.

    Args:
        model: The encoder.
        tokens: The texts, one a row.
        mask: Which tokens are no padding; all by default.
        token_types: As for a call of the model.

    Returns:
        The vectors (b, D), so that ``e @ e.T`` are the cosines. A row of padding only gives 0.

    Raises:
        ShapeError: As a call of the model.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix.models import read_config
        >>> config = read_config(
        ...     dict(model_type="bert", vocab_size=11, hidden_size=8, intermediate_size=12)
        ...     | dict(num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32)
        ... )
        >>> model = Bert(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
        >>> vectors = sentence_embeddings(model, jnp.array([[1, 2, 3], [4, 5, 6]]))
        >>> vectors.shape, jnp.linalg.norm(vectors, axis=1).round(5).tolist()
        ((2, 8), [1.0, 1.0])

    Source: ``sentence_transformers.models.Pooling`` and ``Normalize``.
    """
    hidden = model(tokens, mask=mask, token_types=token_types)
    weight = jnp.ones(tokens.shape, bool) if mask is None else mask
    weight = weight.astype(hidden.dtype)[:, :, None]
    total = jnp.sum(hidden * weight, axis=1)
    mean = total / jnp.maximum(jnp.sum(weight, axis=1), 1)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
