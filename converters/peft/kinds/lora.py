"""PEFT's LoRA, with DoRA and the other forms that one config can ask for."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxmix.converters.peft.file import File
from jaxmix.converters.peft.kind import (
    ABOUT,
    MERGE,
    RANK_PATTERNS,
    SAVED,
    WHERE,
    Fields,
    Kind,
    Refusal,
)
from jaxmix.converters.peft.shapes import Factor, Factors, check_ranks, need
from jaxmix.converters.peft.values import ANY, COUNT, FLAG, NUMBER, one_of
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError
from jaxmix.families import LoRA, Update

__all__ = ["KIND", "LORA_HARMLESS", "LORA_REFUSED"]

_LATER = "it comes in a later version of jaxmix"

LORA_REFUSED = {
    "alora_invocation_tokens": Refusal(
        "aLoRA acts from a token on, by position: no fixed weight computes that", "Keep it in PEFT."
    ),
    "arrow_config": Refusal(
        "Arrow routes every token to other adapters: no fixed weight computes that",
        "Load the single adapters and mix them with strengths.",
    ),
    "kasa_config": Refusal("KaSA truncates the base's singular values when it is loaded", MERGE),
    # PEFT lets the copies of a layer share their weights, so that its own merge is wrong.
    "layer_replication": Refusal(
        "it repeats layers of the base, so that the sites are those of another, deeper model",
        "Make that base: its layers copied in this order; then set layer_replication to null.",
        is_off_when_empty=True,
    ),
    "megatron_config": Refusal(
        "the file may hold one rank's part of Megatron's parallel layers",
        "Gather the parts and save a plain LoRA.",
        is_off_when_empty=True,
    ),
    "target_parameters": Refusal(
        f"the stacked weights of experts: {_LATER}", MERGE, is_off_when_empty=True
    ),
    "trainable_token_indices": Refusal(
        f"trained tokens replace rows of the embedding: {_LATER}", MERGE
    ),
    "use_bdlora": Refusal(f"BD-LoRA's factors are block-diagonal: {_LATER}", MERGE),
    "use_qalora": Refusal(
        "QALoRA pools the input of quantized layers before it multiplies A",
        "Keep it in PEFT, with its quantized base.",
    ),
}
# Inits are judged by `init_lora_weights`; their own configs, then, do nothing more. VeLoRA changes
# the backward pass only, and MonteCLoRA samples in training only. `ensure_weight_tying` says where,
# and the keys of the file say it too.
LORA_HARMLESS = frozenset(
    "corda_config ensure_weight_tying eva_config loftq_config lora_dropout lora_ga_config "
    "megatron_core monteclora_config qalora_group_size runtime_config velora_config".split()
)

# What `init_lora_weights` may be and leave the base as it was: these choose the factors only (EVA
# from activations, MiCA from the base's singular vectors). The others take something off the base
# when PEFT makes the layer.
_MILD_INITS = ("eva", "gaussian", "mica", "orthogonal")
_BASE_INITS = ("corda", "lora_ga", "olora", "pissa")
_CONVERT = (
    "Save it as a plain LoRA with PEFT: model.save_pretrained(…, "
    "path_initial_model_for_weight_conversion=folder), where folder is the adapter's as it was "
    "before training (for 'pissa' and 'olora' get_peft_model on the base makes it again)."
)


def _build(file: File, site: str, factors: Factors) -> Update:
    """LoRA and DoRA, of a linear layer, a convolution or an embedding."""
    rank = file.config.by_site("rank_pattern", "r", site)
    alpha = file.config.by_site("alpha_pattern", "lora_alpha", site)
    scale = alpha / (math.sqrt(rank) if file.config.flag("use_rslora") else rank)
    magnitude = _magnitude(file, factors)
    if "lora_embedding_A" in factors or "lora_embedding_B" in factors:
        a, b = need(factors, "lora_embedding_A", "lora_embedding_B")
        check_ranks(factors, {"lora_embedding_A": (2, 0), "lora_embedding_B": (2, 1)}, rank)
        # The weight is (V, D), and PEFT stores A (r, V), B (D, r).
        return LoRA(b.T, a.T, scale, magnitude=magnitude, embedding=True)
    a, b = need(factors, "lora_A.weight", "lora_B.weight")
    if b.ndim == a.ndim > 2 and a.shape[0] == rank and rank > b.shape[1] > 0:
        raise UnsupportedError(
            f"lora_B has {b.shape[1]} of {rank} ranks: a LoRA of a convolution in groups mixes the "
            "groups' inputs, which no weight of the grouped convolution can do. Train it without "
            "that layer"
        )
    axes = max(a.ndim, 2)
    check_ranks(factors, {"lora_A.weight": (axes, 0), "lora_B.weight": (axes, 1)}, rank)
    if b.shape[2:] != (1,) * (axes - 2):
        raise ShapeError(f"lora_B.weight has shape {b.shape}, expected (out, {rank}, 1, …)")
    kernel = a.shape[2:]
    return LoRA(
        a.reshape(rank, -1),
        b.reshape(-1, rank),
        scale,
        magnitude=magnitude,
        bias=_bias(file, factors, b.shape[:1]),
        kernel=kernel,
        transposed=file.config.flag("fan_in_fan_out") and not kernel,
    )


def _bias(file: File, factors: Factors, shape: tuple[int, ...]) -> Factor | None:
    """The bias of ``lora_bias``."""
    bias = _flagged(file, factors, "lora_B.bias", "lora_bias")
    if bias is not None and bias.shape != shape:
        raise ShapeError(f"lora_B.bias has shape {bias.shape}, expected {shape}")
    return bias


def _magnitude(file: File, factors: Factors) -> Factor | None:
    """DoRA's magnitude without the axes of length one that a convolution's has."""
    magnitude = _flagged(file, factors, "lora_magnitude_vector", "use_dora")
    if magnitude is None:
        return None
    if magnitude.size != max(magnitude.shape, default=0):
        raise ShapeError(f"lora_magnitude_vector has shape {magnitude.shape}, expected (out,)")
    return magnitude.reshape(-1)


def _flagged(file: File, factors: Factors, name: str, flag: str) -> Factor | None:
    """A factor that is there exactly if a flag says so."""
    if (name in factors) == file.config.flag(flag):
        return factors.get(name)
    found = "there" if name in factors else "missing"
    said = "true" if file.config.flag(flag) else "false"
    raise CheckpointError(f"{name} is {found}, but {flag} is {said} in the config")


def _init_problem(init: Any) -> str | None:
    """Why a LoRA's ``init_lora_weights`` is refused: its factors fit only a changed base."""
    said = f"init_lora_weights = {init!r}"
    name = str(init).lower()
    if init is None or isinstance(init, bool) or name in _MILD_INITS:
        return None
    if name == "loftq":
        why = "LoftQ replaced the base's weights by quantized ones, and the factors fit only those"
        todo = "Merge it with PEFT (merge_and_unload) and use the merged model as the base."
        return f"{said}: {why}. {todo}"
    if name.startswith(_BASE_INITS):
        return f"{said}: it took the initial factors' product off the base's weights. {_CONVERT}"
    return f"{said}: unknown; it may have changed the base's weights. {_CONVERT}"


def _judged(values: Mapping[str, Any]) -> Iterator[str]:
    if problem := _init_problem(values.get("init_lora_weights")):
        yield problem


KIND = Kind(
    Fields(
        {
            "bias": one_of("none", "all", "lora_only"),
            "fan_in_fan_out": FLAG,
            "init_lora_weights": ANY,
            "lora_alpha": NUMBER,
            "lora_bias": FLAG,
            "r": COUNT,
            "use_dora": FLAG,
            "use_rslora": FLAG,
            **SAVED,
            **RANK_PATTERNS,
        },
        ABOUT | WHERE | LORA_HARMLESS,
        LORA_REFUSED,
    ),
    (
        "lora_A.weight",
        "lora_B.weight",
        "lora_B.bias",
        "lora_embedding_A",
        "lora_embedding_B",
        "lora_magnitude_vector",
    ),
    _build,
    judged=_judged,
)
