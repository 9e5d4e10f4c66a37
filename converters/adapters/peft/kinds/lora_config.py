"""The fields of PEFT's LoRA: which count, which do not touch the weights, which are refused."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxmix.converters.adapters.peft.kind import (
    ABOUT,
    MERGE,
    RANK_PATTERNS,
    SAVED,
    WHERE,
    Fields,
    Refusal,
)
from jaxmix.converters.adapters.peft.values import ANY, COUNT, FLAG, NAMES, NUMBER, TOKENS, one_of

__all__ = ["FIELDS", "LORA_HARMLESS", "LORA_REFUSED", "SUBTRACTED", "problems"]

LORA_REFUSED = {
    "alora_invocation_tokens": Refusal(
        "aLoRA acts from a token on, by position: no fixed weight computes that", "Keep it in PEFT."
    ),
    "arrow_config": Refusal(
        "Arrow routes every token to other adapters: no fixed weight computes that",
        "Load the single adapters and mix them with strengths.",
    ),
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
}
# Inits are judged by `init_lora_weights`; their own configs, then, do nothing more. VeLoRA changes
# the backward pass only, and MonteCLoRA samples in training only. `ensure_weight_tying` says where,
# and the keys of the file say it too.
LORA_HARMLESS = frozenset(
    "corda_config ensure_weight_tying eva_config loftq_config lora_dropout lora_ga_config "
    "megatron_core monteclora_config runtime_config velora_config".split()
)
FIELDS = Fields(
    {
        "bias": one_of("none", "all", "lora_only"),
        "fan_in_fan_out": FLAG,
        "init_lora_weights": ANY,
        "kasa_config": ANY,
        "lora_alpha": NUMBER,
        "lora_bias": FLAG,
        "qalora_group_size": ANY,
        "r": COUNT,
        "target_parameters": NAMES,
        "trainable_token_indices": TOKENS,
        "use_bdlora": ANY,
        "use_dora": FLAG,
        "use_qalora": FLAG,
        "use_rslora": FLAG,
        **SAVED,
        **RANK_PATTERNS,
    },
    ABOUT | WHERE | LORA_HARMLESS,
    LORA_REFUSED,
)

# What `init_lora_weights` may be and leave the base as it was: these choose the factors only (EVA
# from activations, MiCA from the base's singular vectors). The others take something off the base
# when PEFT makes the layer.
_MILD_INITS = ("eva", "gaussian", "mica", "orthogonal")
_BASE_INITS = ("corda", "lora_ga", "olora", "pissa")
# Of these what was taken off can be computed again from the base.
SUBTRACTED = ("olora", "pissa")
_CONVERT = (
    "Save it as a plain LoRA with PEFT: model.save_pretrained(…, "
    "path_initial_model_for_weight_conversion=folder), where folder is the adapter's as it was "
    "before training (for 'pissa' and 'olora' get_peft_model on the base makes it again)."
)


def problems(values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a config as a whole: factors that fit only a base that was changed."""
    init = values.get("init_lora_weights")
    name, said = str(init).lower(), f"init_lora_weights = {init!r}"
    if init is None or isinstance(init, bool) or name in (*_MILD_INITS, *SUBTRACTED):
        return
    if name == "loftq":
        why = "LoftQ replaced the base's weights by quantized ones, and the factors fit only those"
        yield f"{said}: {why}. {MERGE}"
    elif name.startswith(_BASE_INITS):
        why = (
            "it took the initial factors' product off the base's weights, as data or chance had it"
        )
        yield f"{said}: {why}. {_CONVERT}"
    else:
        yield f"{said}: unknown; it may have changed the base's weights. {_CONVERT}"
