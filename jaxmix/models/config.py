"""The configs of the models: decoders, GPT-2 and BERT."""

from dataclasses import dataclass

from jaxmix.models.rope import Rope

__all__ = ["BertConfig", "DecoderConfig", "GPT2Config"]


@dataclass(frozen=True)
class DecoderConfig:
    """The config of a decoder, with the same fields for all model types.

    Read one with `read_config`; change it with ``dataclasses.replace``.

    Args:
        kind: The ``model_type``, for messages only.
        vocab_size: The vocabulary size V.
        hidden_size: The hidden size D.
        intermediate_size: The width of the feed-forward layers.
        num_hidden_layers: The number of layers.
        num_attention_heads: The number of query heads.
        num_key_value_heads: The number of key and value heads; each serves a group of query heads.
        head_dim: The size of a head, not always D / heads.
        activation: ``silu``, ``gelu``, ``gelu_tanh`` or ``relu``.
        rms_norm_eps: The epsilon of the norms, added to the mean square.
        rope: The rotary embedding.
        windows: The attention window of each layer in tokens, including the token itself; None for
            no limit.
        qkv_bias: Whether q, k and v have biases.
        o_bias: Whether o has a bias.
        mlp_bias: Whether the feed-forward layers have biases.
        qk_norm: Whether q and k are normalized for each head.
        norm_offset: Norms multiply with ``norm_offset + w``; 1 for Gemma, otherwise 0.
        embed_scale: The factor of embeddings; √D for Gemma, otherwise 1.
        tie_word_embeddings: Whether the head is tied to the embedding.
        max_position_embeddings: The context length of training, in tokens; it is not enforced.
        eos_token_ids: The tokens that end a text.
        pad_token_id: The token after the end; None for the first of ``eos_token_ids``.

    Example:
        >>> from dataclasses import replace
        >>> from jaxmix.models import read_config
        >>> config = read_config(
        ...     dict(model_type="llama", vocab_size=11, hidden_size=8, intermediate_size=12)
        ...     | dict(num_hidden_layers=2, num_attention_heads=4)
        ... )
        >>> config.head_dim, config.windows, config.rope
        (2, (None, None), Rope(kind='default', scale=1.0))
        >>> replace(config, windows=(None, 3)).windows
        (None, 3)

    Source: the ``configuration_*.py`` of transformers 5.24.
    """

    kind: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    activation: str
    rms_norm_eps: float
    rope: Rope
    windows: tuple[int | None, ...]
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_offset: float = 0.0
    embed_scale: float = 1.0
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 2048
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None


@dataclass(frozen=True)
class GPT2Config:
    """The config of a GPT-2.

    Read one with `read_config`; change it with ``dataclasses.replace``.

    Args:
        vocab_size: The vocabulary size V.
        hidden_size: The hidden size D, ``n_embd``.
        intermediate_size: The width of the feed-forward layers, ``n_inner``; 4 D if that is null.
        num_hidden_layers: The number of layers, ``n_layer``.
        num_attention_heads: The number of heads, ``n_head``.
        max_position_embeddings: The number of learned positions, ``n_positions``, which limits the
            length of a text.
        activation: ``silu``, ``gelu``, ``gelu_tanh`` or ``relu``.
        layer_norm_eps: The epsilon of the norms, added to the variance.
        score_scales: The factor of attention scores for each layer. It is ``1/√d`` unless changed
            by ``scale_attn_weights`` or ``scale_attn_by_inverse_layer_idx``.
        tie_word_embeddings: Whether the head is tied to the embedding.
        eos_token_ids: The tokens that end a text.
        pad_token_id: The token after the end; None for the first of ``eos_token_ids``.
        kind: The ``model_type``, for messages only.

    Example:
        >>> from jaxmix.models import read_config
        >>> config = read_config(
        ...     dict(model_type="gpt2", vocab_size=11, n_positions=32, n_embd=8)
        ...     | dict(n_layer=2, n_head=2)
        ... )
        >>> config.head_dim, config.intermediate_size, config.score_scales
        (4, 32, (0.5, 0.5))

    Source: ``transformers/models/gpt2/configuration_gpt2.py`` of 5.24.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    activation: str
    layer_norm_eps: float
    score_scales: tuple[float, ...]
    tie_word_embeddings: bool = True
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    kind: str = "gpt2"

    @property
    def head_dim(self) -> int:
        """The size of a head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_key_value_heads(self) -> int:
        """The number of key and value heads, equal to the number of query heads."""
        return self.num_attention_heads


@dataclass(frozen=True)
class BertConfig:
    """The config of a BERT encoder.

    Read one with `read_config`; change it with ``dataclasses.replace``.

    Args:
        vocab_size: The vocabulary size V.
        hidden_size: The hidden size D.
        intermediate_size: The width of the feed-forward layers.
        num_hidden_layers: The number of layers.
        num_attention_heads: The number of heads.
        max_position_embeddings: The number of learned positions, which limits the length of a text.
        type_vocab_size: The number of token types (first and second text).
        activation: ``silu``, ``gelu``, ``gelu_tanh`` or ``relu``.
        layer_norm_eps: The epsilon of the norms, added to the variance.
        pooler: Whether there is a pooler. It is not in config.json; loading weights sets it
            according to the tensors.
        kind: The ``model_type``, for messages only.

    Example:
        >>> from jaxmix.models import read_config
        >>> config = read_config(
        ...     dict(model_type="bert", vocab_size=11, hidden_size=8, intermediate_size=12)
        ...     | dict(num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32)
        ... )
        >>> config.head_dim, config.activation, config.layer_norm_eps
        (4, 'gelu', 1e-12)

    Source: ``transformers/models/bert/configuration_bert.py`` of 5.24.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    type_vocab_size: int
    activation: str
    layer_norm_eps: float
    pooler: bool = True
    kind: str = "bert"

    @property
    def head_dim(self) -> int:
        """The size of a head."""
        return self.hidden_size // self.num_attention_heads
