"""What a decoder computes, whatever kind of model it is."""

from dataclasses import dataclass

from jaxmix.models.rope import Rope

__all__ = ["DecoderConfig"]


@dataclass(frozen=True)
class DecoderConfig:
    """What a decoder computes, in terms that are the same for all kinds of model.

    Read one with `read_config`; change it with ``dataclasses.replace``.

    Args:
        kind: ``model_type``, for messages only.
        vocab_size: V.
        hidden_size: D.
        intermediate_size: the width of the feed-forward.
        num_hidden_layers: how many layers.
        num_attention_heads: heads of the queries.
        num_key_value_heads: heads of keys and values; each serves a group of the queries'.
        head_dim: the size of a head, not always D / heads.
        activation: ``silu``, ``gelu``, ``gelu_tanh`` or ``relu``.
        rms_norm_eps: what the norms add to the mean square.
        rope: the rotary embedding.
        windows: for each layer, how many tokens back it sees, itself included; None for all.
        qkv_bias: whether q, k and v have biases.
        o_bias: whether o has one.
        mlp_bias: whether the feed-forward has.
        qk_norm: whether q and k are normed head by head.
        norm_offset: norms multiply with ``norm_offset + w``; 1 for Gemma, else 0.
        embed_scale: what embeddings are multiplied with; √D for Gemma, else 1.
        tie_word_embeddings: whether the logits are made with the embedding.
        max_position_embeddings: the context of its training, in tokens. Nothing stops there.
        eos_token_ids: the tokens that end a text.
        pad_token_id: what follows the end; None for the first of ``eos_token_ids``.

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
