"""config.json: read, and every field accounted for."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmix.errors import UnsupportedError
from jaxmix.models.checkpoint import read_json
from jaxmix.models.config import BertConfig, DecoderConfig, GPT2Config
from jaxmix.models.fields import Fields
from jaxmix.models.kinds import BERT, COMMON, GPT2, KINDS, Kind
from jaxmix.models.rope import read_rope

__all__ = ["read_config"]

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


def read_config(source: str | os.PathLike[str] | Mapping[str, Any]) -> Any:
    """The config of a Hugging Face folder, or of the fields of its config.json.

    Args:
        source: The folder, or a dict, as transformers 4 or 5 spells it.

    Returns:
        A `DecoderConfig`, `GPT2Config` or `BertConfig`, by ``model_type``.

    Raises:
        CheckpointError: If the file is missing or no JSON object, or for fields that are missing or
            make no sense; all are listed.
        UnsupportedError: For a ``model_type``, or fields that would change the forward, which are
            not honoured here; all are listed.

    Example:
        >>> read_config({"model_type": "gpt_neox"})
        Traceback (most recent call last):
        ...
        jaxmix.errors.UnsupportedError: config.json: model_type is 'gpt_neox', expected one of
        llama, mistral, qwen2, qwen3, gemma, gpt2, bert: jaxmix runs no other. Adapters can still be
        mixed into the weights of another library's model.

    Source: what ``PreTrainedConfig.save_pretrained`` of transformers writes.
    """
    if isinstance(source, Mapping):
        values, where = source, "config.json"
    else:
        path = Path(source) / "config.json"
        values, where = read_json(path), str(path)
    kind = values.get("model_type")
    if kind == "gpt2":
        return _gpt2(Fields(values, where, kind, **GPT2))
    if kind == "bert":
        return _bert(Fields(values, where, kind, **BERT))
    if not isinstance(kind, str) or kind not in KINDS:
        raise UnsupportedError(
            f"{where}: model_type is {kind!r}, expected one of {', '.join([*KINDS, 'gpt2'])}, "
            "bert: jaxmix runs no other. Adapters can still be mixed into the weights of another "
            "library's model."
        )
    return _Decoder(values, where, kind, KINDS[kind]).config()


def _gpt2(fields: Fields) -> GPT2Config:
    """GPT-2's fields, under the names that the other kinds have."""
    hidden, layers, heads = (fields.size(name) for name in ("n_embd", "n_layer", "n_head"))
    fields.parted("n_embd", hidden, "n_head", heads)
    plain = max(hidden // heads, 1) ** -0.5 if fields.flag("scale_attn_weights") else 1.0
    by_layer = fields.flag("scale_attn_by_inverse_layer_idx")
    config = GPT2Config(
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.size("n_inner", 4 * hidden),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=fields.size("n_positions"),
        activation=fields.activation("activation_function", fields.get("activation_function")),
        layer_norm_eps=fields.epsilon("layer_norm_epsilon", 1e-5),
        score_scales=tuple(plain / (i + 1 if by_layer else 1) for i in range(layers)),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        eos_token_ids=fields.ids("eos_token_id"),
        pad_token_id=next(iter(fields.ids("pad_token_id")), None),
    )
    fields.check()
    return config


def _bert(fields: Fields) -> BertConfig:
    """BERT's fields."""
    names = (*_SIZES, "max_position_embeddings", "type_vocab_size")
    sizes: dict[str, Any] = {name: fields.size(name) for name in names}
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    fields.parted("hidden_size", hidden, "num_attention_heads", heads)
    kind = fields.get("position_embedding_type") or "absolute"
    if kind != "absolute":
        fields.refused.append(f"position_embedding_type = {kind!r}: expected 'absolute'")
    config = BertConfig(
        **sizes,
        activation=fields.activation("hidden_act", fields.get("hidden_act")),
        layer_norm_eps=fields.epsilon("layer_norm_eps", 1e-12),
    )
    fields.check()
    return config


class _Decoder(Fields):
    """The fields of a decoder's file."""

    def __init__(self, values: Mapping[str, Any], where: str, name: str, kind: Kind):
        reads = COMMON | kind.reads
        super().__init__(values, where, name, reads=reads, defaults=kind.defaults)
        self.kind = kind

    def config(self) -> DecoderConfig:
        """The whole config, or one error with all that is wrong."""
        sizes = {name: self.size(name) for name in _SIZES}
        hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
        kv_heads = self.size("num_key_value_heads", heads)
        head_dim = self.size("head_dim", max(hidden // heads, 1))
        if self.get("head_dim") is None and hidden % heads:
            self.wrong.append(
                f"hidden_size = {hidden} is no multiple of num_attention_heads = {heads}, and "
                "there is no head_dim"
            )
        length = self.size("max_position_embeddings")
        self.parted("num_attention_heads", heads, "num_key_value_heads", kv_heads)
        if head_dim % 2:
            self.wrong.append(f"head_dim = {head_dim} is odd; it is turned in pairs")
        fields: dict[str, Any] = {
            **sizes,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "activation": self.function(),
            "rms_norm_eps": self.epsilon("rms_norm_eps", 1e-6),
            "windows": self.windows(sizes["num_hidden_layers"]),
            "qkv_bias": self.bias(self.kind.qkv_bias),
            "o_bias": self.bias(self.kind.o_bias),
            "mlp_bias": self.flag("mlp_bias"),
            "qk_norm": self.kind.qk_norm,
            "norm_offset": 1.0 if self.kind.gemma else 0.0,
            "embed_scale": hidden**0.5 if self.kind.gemma else 1.0,
            "tie_word_embeddings": self.flag("tie_word_embeddings"),
            "max_position_embeddings": length,
            "eos_token_ids": self.ids("eos_token_id"),
            "pad_token_id": next(iter(self.ids("pad_token_id")), None),
        }
        self.check()
        rope = read_rope(self.values, head_dim, length, self.where)
        return DecoderConfig(self.name, rope=rope, **fields)

    def bias(self, always: bool | None) -> bool:
        """What the kind says, or ``attention_bias``."""
        return self.flag("attention_bias") if always is None else always

    def function(self) -> str:
        """The feed-forward's function."""
        name = self.get("hidden_act") or "silu"
        if self.kind.gemma:
            # "gelu" in a Gemma config means the tanh form: the files are older than its name.
            name = "gelu_pytorch_tanh" if name == "gelu" else name
            old = self.values.get("hidden_activation") or name
            if old != name:
                self.wrong.append(f"hidden_activation is {old!r}, but hidden_act is {name!r}")
        return self.activation("hidden_act", name)

    def windows(self, layers: int) -> tuple[int | None, ...]:
        """How far back each layer sees."""
        switch = "use_sliding_window" in self.kind.reads
        on = "sliding_window" in self.kind.reads and (not switch or self.flag("use_sliding_window"))
        window = (
            self.size("sliding_window") if on and self.get("sliding_window") is not None else None
        )
        first = self.whole("max_window_layers", 28) if switch else 0
        types = self.values.get("layer_types") if switch else None
        if types is None:
            types = ["full_attention" if i < first else "sliding_attention" for i in range(layers)]
            types = types if window else ["full_attention"] * layers
        if not isinstance(types, list) or len(types) != layers:
            self.wrong.append(f"layer_types is {types!r}, expected a list of {layers}")
            types = []
        odd = sorted({str(one) for one in types} - {"full_attention", "sliding_attention"})
        if odd:
            self.refused.append(f"layer_types: {', '.join(odd)} is not done here")
        if "sliding_attention" in types and window is None:
            self.wrong.append("layer_types has sliding_attention, but there is no sliding_window")
        return tuple(window if one == "sliding_attention" else None for one in types)
