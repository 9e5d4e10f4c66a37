"""`read_config`: reads config.json and checks every field."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmix.errors import UnsupportedError
from jaxmix.models.checkpoint import read_json
from jaxmix.models.config import BertConfig, DecoderConfig, GPT2Config
from jaxmix.models.config_reader import ConfigReader
from jaxmix.models.model_types import BERT, COMMON, DECODER_TYPES, GPT2, ModelType
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
    """Reads the config of a Hugging Face folder.

    Args:
        source: The folder, or the fields of its config.json as a dict, as written by transformers 4
            or 5.

    Returns:
        A `DecoderConfig`, `GPT2Config` or `BertConfig`, according to ``model_type``.

    Raises:
        CheckpointError: If the file is missing or not a JSON object, or fields are missing or
            invalid; the error lists all of them.
        UnsupportedError: If the ``model_type`` or fields that affect the forward pass are not
            supported; the error lists all of them.

    Example:
        >>> read_config({"model_type": "gpt_neox"})
        Traceback (most recent call last):
        ...
        jaxmix.errors.UnsupportedError: config.json: model_type is 'gpt_neox', expected one of
        llama, mistral, qwen2, qwen3, gemma, gpt2, bert: jaxmix can't run other models. Adapters can
        still be mixed into the weights of another library's model.

    Source: ``PreTrainedConfig.save_pretrained`` of transformers.
    """
    if isinstance(source, Mapping):
        values, where = source, "config.json"
    else:
        path = Path(source) / "config.json"
        values, where = read_json(path), str(path)
    kind = values.get("model_type")
    if kind == "gpt2":
        return _gpt2(ConfigReader(values, where, kind, **GPT2))
    if kind == "bert":
        return _bert(ConfigReader(values, where, kind, **BERT))
    if not isinstance(kind, str) or kind not in DECODER_TYPES:
        names = ", ".join([*DECODER_TYPES, "gpt2", "bert"])
        raise UnsupportedError(
            f"{where}: model_type is {kind!r}, expected one of {names}: jaxmix can't run "
            "other models. Adapters can still be mixed into the weights of another library's model."
        )
    return _Decoder(values, where, kind, DECODER_TYPES[kind]).config()


def _gpt2(fields: ConfigReader) -> GPT2Config:
    """Reads GPT-2's fields and renames them to those of other model types."""
    hidden, layers, heads = (fields.positive(name) for name in ("n_embd", "n_layer", "n_head"))
    fields.check_divides("n_embd", hidden, "n_head", heads)
    plain = max(hidden // heads, 1) ** -0.5 if fields.flag("scale_attn_weights") else 1.0
    by_layer = fields.flag("scale_attn_by_inverse_layer_idx")
    config = GPT2Config(
        vocab_size=fields.positive("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.positive("n_inner", 4 * hidden),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=fields.positive("n_positions"),
        activation=fields.activation("activation_function", fields.get("activation_function")),
        layer_norm_eps=fields.epsilon("layer_norm_epsilon", 1e-5),
        score_scales=tuple(plain / (i + 1 if by_layer else 1) for i in range(layers)),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        eos_token_ids=fields.ids("eos_token_id"),
        pad_token_id=next(iter(fields.ids("pad_token_id")), None),
    )
    fields.check()
    return config


def _bert(fields: ConfigReader) -> BertConfig:
    """Reads BERT's fields."""
    names = (*_SIZES, "max_position_embeddings", "type_vocab_size")
    sizes: dict[str, Any] = {name: fields.positive(name) for name in names}
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    fields.check_divides("hidden_size", hidden, "num_attention_heads", heads)
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


class _Decoder(ConfigReader):
    """Reads the fields of a decoder."""

    def __init__(self, values: Mapping[str, Any], where: str, name: str, kind: ModelType):
        reads = COMMON | kind.reads
        super().__init__(values, where, name, reads=reads, defaults=kind.defaults)
        self.kind = kind

    def config(self) -> DecoderConfig:
        """Returns the config, or raises an error with all problems."""
        sizes = {name: self.positive(name) for name in _SIZES}
        hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
        kv_heads = self.positive("num_key_value_heads", heads)
        head_dim = self.positive("head_dim", max(hidden // heads, 1))
        if self.get("head_dim") is None and hidden % heads:
            self.wrong.append(
                f"hidden_size = {hidden} is not a multiple of num_attention_heads = {heads}, and "
                "there is no head_dim"
            )
        length = self.positive("max_position_embeddings")
        self.check_divides("num_attention_heads", heads, "num_key_value_heads", kv_heads)
        if head_dim % 2:
            self.wrong.append(f"head_dim = {head_dim} is odd, but the rotary embedding needs pairs")
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
        """Returns the model type's constant, or ``attention_bias``."""
        return self.flag("attention_bias") if always is None else always

    def function(self) -> str:
        """Returns the activation function."""
        name = self.get("hidden_act") or "silu"
        if self.kind.gemma:
            # "gelu" in a Gemma config means the tanh form: the files are older than that name.
            name = "gelu_pytorch_tanh" if name == "gelu" else name
            old = self.values.get("hidden_activation") or name
            if old != name:
                self.wrong.append(f"hidden_activation is {old!r}, but hidden_act is {name!r}")
        return self.activation("hidden_act", name)

    def windows(self, layers: int) -> tuple[int | None, ...]:
        """Returns the attention window of each layer."""
        switch = "use_sliding_window" in self.kind.reads
        on = "sliding_window" in self.kind.reads and (not switch or self.flag("use_sliding_window"))
        window = (
            self.positive("sliding_window")
            if on and self.get("sliding_window") is not None
            else None
        )
        first = self.non_negative("max_window_layers", 28) if switch else 0
        types = self.values.get("layer_types") if switch else None
        if types is None:
            types = ["full_attention" if i < first else "sliding_attention" for i in range(layers)]
            types = types if window else ["full_attention"] * layers
        if not isinstance(types, list) or len(types) != layers:
            self.wrong.append(f"layer_types is {types!r}, expected a list of {layers}")
            types = []
        unknown = sorted({str(name) for name in types} - {"full_attention", "sliding_attention"})
        if unknown:
            self.refused.append(f"layer_types: {', '.join(unknown)} is not supported")
        if "sliding_attention" in types and window is None:
            self.wrong.append("layer_types has sliding_attention, but there is no sliding_window")
        return tuple(window if name == "sliding_attention" else None for name in types)
