"""The fields of PEFT's configs: which count, which do not touch the weights, which are refused.

Read from the sources of peft 0.21.2, family by family. A test walks PEFT's dataclasses and fails for
a field that is in none of these tables; a field that a newer PEFT adds is accepted while it is off
(null, false, empty) and refused when it is on.
"""

from typing import Any, NamedTuple

__all__ = ["FAMILY_FIELDS", "REFUSED_TYPES", "Fields", "Refusal"]


class Refusal(NamedTuple):
    """Why a field is refused unless it is off, and what to do."""

    why: str
    todo: str = "Train or export the adapter without it."


class Fields(NamedTuple):
    """The fields of one family's config: honoured, harmless, refused unless off."""

    honoured: frozenset[str]
    harmless: frozenset[str]
    refused: dict[str, Refusal]


# Who made it and for what, and where it was put: the keys of the file say where.
_ABOUT = frozenset(
    "auto_mapping base_model_name_or_path inference_mode peft_type revision task_type".split()
)
_WHERE = frozenset("target_modules exclude_modules layers_to_transform layers_pattern".split())
_PATTERNS = frozenset(["rank_pattern", "alpha_pattern"])

_LAYER_REPLICATION = Refusal(
    "it repeats layers of the base, so that the sites are those of another, deeper model",
    "Merge it with PEFT (merge_and_unload) and use the merged model as the base.",
)
_LATER = "it comes in a later version of jaxmix"
_LORA_REFUSED = {
    "alora_invocation_tokens": Refusal(
        "aLoRA acts from a token on, by position: no fixed weight computes that"
    ),
    "arrow_config": Refusal(
        "Arrow routes every token to other adapters: no fixed weight computes that",
        "Load the single adapters and mix them with strengths.",
    ),
    "kasa_config": Refusal(
        "KaSA truncates the base's own singular values when it is loaded",
        "Merge it with PEFT (merge_and_unload) and use the merged model as the base.",
    ),
    "layer_replication": _LAYER_REPLICATION,
    "megatron_config": Refusal(
        "the file may hold one rank's part of Megatron's parallel layers",
        "Gather the parts and save a plain LoRA.",
    ),
    "monteclora_config": Refusal("MonteCLoRA adds random samples to the factors", ""),
    "target_parameters": Refusal(
        f"the stacked weights of experts: {_LATER}",
        "Merge it with PEFT (merge_and_unload) for the time being.",
    ),
    "trainable_token_indices": Refusal(
        f"trained tokens replace rows of the embedding: {_LATER}",
        "Merge it with PEFT (merge_and_unload) for the time being.",
    ),
    "use_bdlora": Refusal(f"BD-LoRA's factors are block-diagonal: {_LATER}"),
    "use_qalora": Refusal("QALoRA pools the input of quantized layers before it multiplies A"),
}
# Inits are judged by `init_lora_weights`; their own configs, then, do nothing more. VeLoRA changes
# the backward pass only. `ensure_weight_tying` says where, and the keys of the file say it too.
_LORA_HARMLESS = frozenset(
    "corda_config ensure_weight_tying eva_config loftq_config lora_dropout lora_ga_config "
    "megatron_core qalora_group_size runtime_config velora_config".split()
)
_LYCORIS_HARMLESS = frozenset("init_weights module_dropout rank_dropout".split())

FAMILY_FIELDS: dict[str, Fields] = {
    "LORA": Fields(
        frozenset(
            "bias fan_in_fan_out init_lora_weights lora_alpha lora_bias modules_to_save r use_dora "
            "use_rslora".split()
        )
        | _PATTERNS,
        _ABOUT | _WHERE | _LORA_HARMLESS | {"peft_version"},
        _LORA_REFUSED,
    ),
    # PEFT's AdaLoRA inherits LoRA's fields and reads few of them: no r, no alpha_pattern, no
    # rslora, no bias of its own, and no init but its own.
    "ADALORA": Fields(
        frozenset("bias fan_in_fan_out init_r lora_alpha modules_to_save rank_pattern".split()),
        _ABOUT
        | _WHERE
        | _LORA_HARMLESS
        | frozenset(
            "alpha_pattern beta1 beta2 deltaT init_lora_weights lora_bias orth_reg_weight "
            "peft_version r target_r tfinal tinit total_step use_rslora".split()
        ),
        _LORA_REFUSED | {"use_dora": Refusal("PEFT's AdaLoRA has no DoRA")},
    ),
    "LOHA": Fields(
        frozenset("alpha modules_to_save r".split()) | _PATTERNS,
        _ABOUT | _WHERE | _LYCORIS_HARMLESS | {"peft_version", "use_effective_conv2d"},
        {},
    ),
    # Which factors are split the keys say, so decompose_* and use_effective_conv2d need not.
    "LOKR": Fields(
        frozenset("alpha modules_to_save r".split()) | _PATTERNS,
        _ABOUT
        | _WHERE
        | _LYCORIS_HARMLESS
        | frozenset(
            "decompose_both decompose_factor peft_version rank_dropout_scale "
            "use_effective_conv2d".split()
        ),
        {},
    ),
    # The blocks' size is the tensor's: PEFT adjusts `r` and `oft_block_size` to divisors. PEFT's OFT
    # takes no layer that is stored transposed, and sets `fan_in_fan_out` to False itself.
    "OFT": Fields(
        frozenset(
            "bias block_share coft eps modules_to_save num_cayley_neumann_terms oft_block_size "
            "peft_version use_cayley_neumann".split()
        ),
        _ABOUT | _WHERE | frozenset("fan_in_fan_out init_weights module_dropout r".split()),
        {},
    ),
    # The positions are in the file, so what drew them (mask_type, random_seed, r) is history.
    "SHIRA": Fields(
        frozenset(["modules_to_save"]),
        _ABOUT
        | _WHERE
        | frozenset("fan_in_fan_out init_weights mask_type peft_version r random_seed".split()),
        {},
    ),
}

_PROMPT = (
    "it adds tokens or key-value pairs to the input and changes no weight, so it can't be part of a "
    "mix of weights. Keep it in PEFT"
)
_ROUTED = (
    "it routes by input, token or task: no fixed weight computes that. Load the single adapters and "
    "mix them with strengths"
)
_LATER_TYPE = (
    "it changes weights but this version of jaxmix does not read it yet. Merge it with PEFT "
    "(merge_and_unload), or convert it to a LoRA there, for the time being"
)


def _reasons(why: str, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), why)


REFUSED_TYPES: dict[str, str] = (
    _reasons(
        _PROMPT,
        "ADAPTION_PROMPT CARTRIDGE CPT MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING PROMPT_TUNING",
    )
    | _reasons(_ROUTED, "ARROW LILY POLY XLORA")
    | _reasons(
        "it runs a parallel network beside the base. Keep it in PEFT",
        "SHADOW",
    )
    | _reasons(
        _LATER_TYPE,
        "ADAMSS BEFT BOFT BONE C3A DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA IA3 LN_TUNING "
        "MISS OSF PEANUT PSOFT PVERA RANDLORA ROAD SUPERTUNING TINYLORA TRAINABLE_TOKENS UNILORA "
        "VBLORA VERA WAVEFT",
    )
)
