"""config.json of a decoder: read, and every field accounted for."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmix.errors import CheckpointError, UnsupportedError, listing
from jaxmix.models.checkpoint import read_json
from jaxmix.models.config import DecoderConfig
from jaxmix.models.kinds import COMMON, HARMLESS, KINDS, REFUSED, Kind
from jaxmix.models.rope import read_rope

__all__ = ["read_config"]

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def read_config(source: str | os.PathLike[str] | Mapping[str, Any]) -> DecoderConfig:
    """The config of a Hugging Face folder, or of the fields of its config.json.

    Args:
        source: the folder, or a dict, as transformers 4 or 5 spells it.

    Returns:
        The config.

    Raises:
        CheckpointError: if the file is missing or no JSON object, or for fields that are missing or
            make no sense; all are listed.
        UnsupportedError: for a ``model_type``, or fields that would change the forward, which are
            not honoured here; all are listed.

    Example:
        >>> read_config({"model_type": "gpt_neox"})
        Traceback (most recent call last):
        ...
        jaxmix.errors.UnsupportedError: config.json: model_type is 'gpt_neox', expected one of
        llama, mistral, qwen2, qwen3, gemma: jaxmix runs no other. Adapters can still be mixed into
        the weights of another library's model.

    Source: what ``PreTrainedConfig.save_pretrained`` of transformers writes.
    """
    if isinstance(source, Mapping):
        values, where = source, "config.json"
    else:
        path = Path(source) / "config.json"
        values, where = read_json(path), str(path)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UnsupportedError(
            f"{where}: model_type is {kind!r}, expected one of {', '.join(KINDS)}: jaxmix runs no "
            "other. Adapters can still be mixed into the weights of another library's model."
        )
    return _Reader(values, where, kind, KINDS[kind]).config()


class _Reader:
    """The fields of one file, and what was found wrong with them so far."""

    def __init__(self, values: Mapping[str, Any], where: str, name: str, kind: Kind):
        self.values, self.where, self.name, self.kind = values, where, name, kind
        self.wrong: list[str] = []
        self.refused: list[str] = []

    def config(self) -> DecoderConfig:
        """The whole config, or one error with all that is wrong."""
        self.refuse_fields()
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
        if heads % kv_heads:
            self.wrong.append(
                f"num_attention_heads = {heads} is no multiple of num_key_value_heads = {kv_heads}"
            )
        if head_dim % 2:
            self.wrong.append(f"head_dim = {head_dim} is odd; it is turned in pairs")
        fields: dict[str, Any] = {
            **sizes,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "activation": self.activation(),
            "rms_norm_eps": self.epsilon(),
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
        if self.refused:
            raise UnsupportedError(
                f"{self.where}: fields of this {self.name} config that are not honoured here:"
                f"{listing(self.refused)}\nIf they do not change the forward, take them out of the "
                "file."
            )
        if self.wrong:
            raise CheckpointError(
                f"{self.where}: fields that make no sense:{listing(self.wrong)}\n"
                "Was the file edited?"
            )
        rope = read_rope(self.values, head_dim, length, self.where)
        return DecoderConfig(self.name, rope=rope, **fields)

    def refuse_fields(self) -> None:
        """The fields that are on and that nothing here honours."""
        for name, value in self.values.items():
            known = name in COMMON or name in HARMLESS or name in self.kind.reads
            if known or value is None or value is False or value in ("", [], {}):
                continue
            why = REFUSED.get(name, f"not a field of {self.name} that this version of jaxmix knows")
            text = repr(value)
            self.refused.append(f"{name} = {text if len(text) < 60 else text[:57] + '…'}: {why}")

    def get(self, name: str) -> Any:
        """A field of the file, or what transformers takes for one that is not there."""
        return self.values[name] if name in self.values else self.kind.defaults.get(name)

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1; 1 if it is wrong, so that the reading can go on."""
        value = self.get(name)
        value = default if value is None else value
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        self.wrong.append(f"{name} is {value!r}, expected a whole number of at least 1")
        return 1

    def epsilon(self) -> float:
        """``rms_norm_eps``."""
        value = self.values.get("rms_norm_eps", 1e-6)
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            return float(value)
        self.wrong.append(f"rms_norm_eps is {value!r}, expected a number of at least 0")
        return 0.0

    def flag(self, name: str) -> bool:
        """True or false; absent and null are false."""
        value = self.get(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        self.wrong.append(f"{name} is {value!r}, expected true or false")
        return False

    def bias(self, always: bool | None) -> bool:
        """What the kind says, or ``attention_bias``."""
        return self.flag("attention_bias") if always is None else always

    def ids(self, name: str) -> tuple[int, ...]:
        """A token, a list of tokens, or none."""
        value = self.get(name)
        found = value if isinstance(value, list) else [] if value is None else [value]
        if all(isinstance(one, int) and not isinstance(one, bool) for one in found):
            return tuple(found)
        self.wrong.append(f"{name} is {value!r}, expected a token's number or a list of them")
        return ()

    def activation(self) -> str:
        """The feed-forward's function."""
        name = self.get("hidden_act") or "silu"
        if self.kind.gemma:
            # "gelu" in a Gemma config means the tanh form: the files are older than its name.
            name = "gelu_pytorch_tanh" if name == "gelu" else name
            old = self.values.get("hidden_activation") or name
            if old != name:
                self.wrong.append(f"hidden_activation is {old!r}, but hidden_act is {name!r}")
        if name not in _ACTIVATIONS:
            self.refused.append(f"hidden_act = {name!r}: expected one of {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS.get(name, "silu")

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

    def whole(self, name: str, default: int) -> int:
        """A whole number of at least 0."""
        value = self.values.get(name, default)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        self.wrong.append(f"{name} is {value!r}, expected a whole number of at least 0")
        return 0
