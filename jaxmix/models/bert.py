"""BERT's encoder as an NNX module whose tree uses Hugging Face's names.

An example of a path is ``encoder.layer.0.attention.self.query.kernel``. Kernels are (in, out) as in
Flax, the transpose of PyTorch's weight.
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
    """The normalized sum of the embeddings of token, token type and position."""

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
    """Attention of all tokens to all tokens except padding."""

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
    """``norm(dense y + x)``: a residual connection followed by a layer norm."""

    def __init__(self, in_size: int, config: BertConfig, dtype: Any, rngs: nnx.Rngs):
        self.dense = Linear(in_size, config.hidden_size, True, dtype, rngs)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps, dtype)

    def __call__(self, y: Float[Array, "b t i"], x: Float[Array, "b t D"]) -> Float[Array, "b t D"]:
        return self.LayerNorm(self.dense(y) + x)


class Attention(nnx.Module):
    """Self-attention and its output projection."""

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
    """The blocks in sequence."""

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
    """BERT's encoder, which maps tokens to hidden states, without a head.

    The leaves have the names of Hugging Face's ``BertModel``:
    ``embeddings.word_embeddings.embedding`` (V, D),
    ``encoder.layer.0.attention.self.query.kernel`` (in, out) and ``.bias`` (out),
    ``encoder.layer.0.output.LayerNorm.scale`` (D), ``pooler.dense.kernel`` (D, D) if there is
    a pooler.

    Args:
        config: The config.
        dtype: The dtype of the leaves, and thus of the activations.
        rngs: ``nnx.Rngs`` for random weights; use `load` or `from_torch` for trained ones.

    Raises:
        ShapeError: On a call, if the tokens are not (b, t), there are more tokens than positions,
            or other arguments do not have their shape.
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
        """Returns the hidden states after the last layer.

        Args:
            tokens: The tokens. Tokens outside the vocabulary give NaN.
            mask: Which tokens are not padding; by default all. No token attends to padding, and the
                hidden states of padding are meaningless.
            token_types: 0 for the first text, 1 for the second; by default all 0.
            positions: The position of each token; by default 0, 1, ….

        Returns:
            The ``last_hidden_state`` of transformers (b, t, D).

        Raises:
            ShapeError: If the shapes do not match.
        """
        others = {"mask": mask, "token_types": token_types, "positions": positions}
        check_tokens(tokens, others)
        count, longest = tokens.shape[1], self.config.max_position_embeddings
        if positions is None and count > longest:
            raise ShapeError(
                f"tokens have shape {tokens.shape}, but this BERT has only {longest} positions. "
                "Truncate the text."
            )
        if mask is not None and mask.dtype != bool:
            raise ShapeError(
                f"mask is {mask.dtype}, expected bool, false for padding. Use attention_mask == 1 "
                "for a tokenizer's attention_mask."
            )
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), tokens.shape)
        types = jnp.zeros_like(tokens) if token_types is None else token_types
        seen = jnp.ones(tokens.shape, bool) if mask is None else mask
        seen = jnp.broadcast_to(seen[:, None, :], (*tokens.shape, count))
        return self.encoder(self.embeddings(tokens, types, positions), seen)

    def pooled(self, hidden: Float[Array, "b t D"]) -> Float[Array, "b D"]:
        """Returns ``tanh(dense h₀)`` of the first token, the ``pooler_output`` of transformers."""
        if not self.config.pooler:
            raise JaxmixError(
                "this BERT has no pooler, since its file contains none. For a vector per text use "
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
    """Returns a unit vector for each text: the normalized mean of its hidden states, ``m/‖m‖``.

    This equals the Pooling (mean) and Normalize modules of sentence-transformers. The files
    ``modules.json`` and ``1_Pooling/config.json`` of a sentence encoder show whether it was trained
    with these, as all-MiniLM-L6-v2 was.

    Args:
        model: The encoder.
        tokens: The texts, one per row.
        mask: Which tokens are not padding; by default all.
        token_types: As for a call of the model.

    Returns:
        The vectors (b, D); ``e @ e.T`` gives their cosines. A row of padding gives 0.

    Raises:
        ShapeError: As for a call of the model.

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
