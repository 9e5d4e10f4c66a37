"""The fields of PEFT's LoRA config: supported, harmless, refused."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxmix.converters.adapters.common.values import ANY, COUNT, FLAG, NAMES, NUMBER, TOKENS, one_of
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    MERGE,
    RANK_PATTERNS,
    SAVED,
    WHERE,
    ConfigFields,
    Refusal,
)

__all__ = ["FIELDS", "LORA_HARMLESS", "LORA_REFUSED", "SUBTRACTED", "problems"]

LORA_REFUSED = {
    "alora_invocation_tokens": Refusal(
        "aLoRA acts only from a certain token on, which no fixed weight computes",
        "Keep it in PEFT.",
    ),
    "arrow_config": Refusal(
        "Arrow routes every token to other adapters, which no fixed weight computes",
        "Load the individual adapters and mix them with strengths.",
    ),
    # In PEFT the copies of a layer share their weights, so its own merge is wrong.
    "layer_replication": Refusal(
        "it repeats layers of the base, so the sites are those of another, deeper model",
        "Create that base by copying its layers in this order; then set layer_replication to null.",
        is_off_when_empty=True,
    ),
    "megatron_config": Refusal(
        "the file may contain one process's part of Megatron's parallel layers",
        "Gather the parts and save a plain LoRA.",
        is_off_when_empty=True,
    ),
}
# `problems` checks `init_lora_weights`, so the configs of the initializations are harmless. VeLoRA
# changes only the backward pass, and MonteCLoRA samples only in training. `ensure_weight_tying`
# selects modules, which the keys of the file name too.
LORA_HARMLESS = frozenset(
    "corda_config ensure_weight_tying eva_config loftq_config lora_dropout lora_ga_config "
    "megatron_core monteclora_config runtime_config velora_config".split()
)
FIELDS = ConfigFields(
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

# Values of `init_lora_weights` that do not change the base: they only choose the factors (EVA from
# activations, MiCA from the base's singular vectors). The others subtract from the base when PEFT
# creates the layer.
_HARMLESS_INITS = ("eva", "gaussian", "mica", "orthogonal")
_BASE_INITS = ("corda", "lora_ga", "olora", "pissa")
# For these, the subtracted product can be computed again from the base.
SUBTRACTED = ("olora", "pissa")
_CONVERT = (
    "Save it as a plain LoRA with PEFT: model.save_pretrained(…, "
    "path_initial_model_for_weight_conversion=folder), where folder contains the adapter "
    "before training (for 'pissa' and 'olora', get_peft_model on the base creates it again)."
)


def problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Describes why the factors fit only a changed base."""
    init = values.get("init_lora_weights")
    name, setting = str(init).lower(), f"init_lora_weights = {init!r}"
    if init is None or isinstance(init, bool) or name in (*_HARMLESS_INITS, *SUBTRACTED):
        return
    if name == "loftq":
        reason = "LoftQ quantized the base's weights, and the factors fit only the result"
        yield f"{setting}: {reason}. {MERGE}"
    elif name.startswith(_BASE_INITS):
        reason = (
            "it subtracted the product of the initial factors, which depend on data or chance, "
            "from the base's weights"
        )
        yield f"{setting}: {reason}. {_CONVERT}"
    else:
        yield f"{setting}: unknown; it may have changed the base's weights. {_CONVERT}"
