"""What a model computes, in terms that are the same for all kinds: decoder, GPT-2, BERT."""

from dataclasses import dataclass

from jaxmix.models.rope import Rope

__all__ = ["BertConfig", "DecoderConfig", "GPT2Config"]


@dataclass(frozen=True)
class DecoderConfig:
    """What a decoder computes, in terms that are the same for all kinds of model.

    Read one with `read_config`; change it with ``dataclasses.replace``.

    Args:
        kind: ``model_type``, for messages only.
        vocab_size: V.
        hidden_size: D.
        intermediate_size: The width of the feed-forward.
        num_hidden_layers: How many layers.
        num_attention_heads: heads of the queries.
        num_key_value_heads: heads of keys and values; each serves a group of the queries'.
        head_dim: The size of a head, not always D / heads.
        activation: ``silu``, ``gelu``, ``gelu_tanh`` or ``relu``.
        rms_norm_eps: What the norms add to the mean square.
        rope: The rotary embedding.
        windows: For each layer, how many tokens back it sees, itself included; None for all.
        qkv_bias: Whether q, k and v have biases.
        o_bias: Whether o has one.
        mlp_bias: Whether the feed-forward has.
        qk_norm: Whether q and k are normed head by head.
        norm_offset: norms multiply with ``norm_offset + w``; 1 for Gemma, else 0.
        embed_scale: What embeddings are multiplied with; √D for Gemma, else 1.
        tie_word_embeddings: Whether the logits are made with the embedding.
        max_position_embeddings: The context of its training, in tokens. Nothing stops there.
        eos_token_ids: The tokens that end a text.
        pad_token_id: What follows the end; None for the first of ``eos_token_ids``.

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
    """What a GPT-2 computes.

    Read one with `read_config`; change it with ``dataclasses.replace``.

    Args:
        vocab_size: V.
        hidden_size: D, ``n_embd``.
        intermediate_size: The width of the feed-forward, ``n_inner``; 4 D where that is null.
        num_hidden_layers: How many layers, ``n_layer``.
        num_attention_heads: heads, ``n_head``.
        max_position_embeddings: How many positions have been learned, ``n_positions``. A text ends
            there.
        activation: ``silu``, ``gelu``, ``gelu_tanh`` or ``relu``.
        layer_norm_eps: What the norms add to the variance.
        score_scales: For each layer, what attention's scores are multiplied with: ``1/√d``, unless
            ``scale_attn_weights`` or ``scale_attn_by_inverse_layer_idx`` say otherwise.
        tie_word_embeddings: Whether the logits are made with the embedding.
        eos_token_ids: The tokens that end a text.
        pad_token_id: What follows the end; None for the first of ``eos_token_ids``.
        kind: ``model_type``, for messages only.

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
        """Heads of keys and values: one for each of the queries'."""
        return self.num_attention_heads


@dataclass(frozen=True)
class BertConfig:
    """What a BERT encoder computes.

    Read one with `read_config`; change it with ``dataclasses.replace``.

    Args:
        vocab_size: V.
        hidden_size: D.
        intermediate_size: The width of the feed-forward.
        num_hidden_layers: How many layers.
        num_attention_heads: heads.
        max_position_embeddings: How many positions have been learned. A text ends there.
        type_vocab_size: How many kinds of tokens (first and second text).
        activation: ``silu``, ``gelu``, ``gelu_tanh`` or ``relu``.
        layer_norm_eps: What the norms add to the variance.
        pooler: Whether there is one. No file says so: reading weights sets it by what they hold.
        kind: ``model_type``, for messages only.

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
