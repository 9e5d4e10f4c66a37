"""The fields of PEFT's configs: which count, which do not touch the weights, which are refused.

Read from the sources of peft 0.21.2, family by family. A test walks PEFT's dataclasses and fails
for a field that is in none of these tables; a field that a newer PEFT adds is accepted while it is
off (null, false, empty) and refused when it is on.
"""

from typing import NamedTuple

from jaxmix.converters.peft.values import (
    ANY,
    BOUND,
    COUNT,
    FLAG,
    MASKS,
    NAMES,
    NUMBER,
    PATTERNS,
    RANKS,
    Kind,
    one_of,
)

__all__ = ["FAMILY_FIELDS", "Fields", "Refusal"]


class Refusal(NamedTuple):
    """Why a field is refused unless it is off, and what to do.

    Off is null or false; where PEFT itself looks for more than that, an empty value is off too.
    """

    why: str
    todo: str
    is_off_when_empty: bool = False


class Fields(NamedTuple):
    """The fields of one family's config: honoured (and what they hold), harmless, refused."""

    honoured: dict[str, Kind]
    harmless: frozenset[str]
    refused: dict[str, Refusal]


# Who made it and for what, and where it was put: the keys of the file say where.
_ABOUT = frozenset(
    "auto_mapping base_model_name_or_path inference_mode peft_type revision task_type".split()
)
_WHERE = frozenset("target_modules exclude_modules layers_to_transform layers_pattern".split())
_PATTERNS = {"rank_pattern": RANKS, "alpha_pattern": PATTERNS}

_LATER = "it comes in a later version of jaxmix"
_AGAIN = "Train it again without."
_MERGE = "Merge it with PEFT (merge_and_unload) and use the merged model as the base."

_LORA_REFUSED = {
    "alora_invocation_tokens": Refusal(
        "aLoRA acts from a token on, by position: no fixed weight computes that", "Keep it in PEFT."
    ),
    "arrow_config": Refusal(
        "Arrow routes every token to other adapters: no fixed weight computes that",
        "Load the single adapters and mix them with strengths.",
    ),
    "kasa_config": Refusal("KaSA truncates the base's singular values when it is loaded", _MERGE),
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
        f"the stacked weights of experts: {_LATER}", _MERGE, is_off_when_empty=True
    ),
    "trainable_token_indices": Refusal(
        f"trained tokens replace rows of the embedding: {_LATER}", _MERGE
    ),
    "use_bdlora": Refusal(f"BD-LoRA's factors are block-diagonal: {_LATER}", _MERGE),
    "use_qalora": Refusal(
        "QALoRA pools the input of quantized layers before it multiplies A",
        "Keep it in PEFT, with its quantized base.",
    ),
}
# Inits are judged by `init_lora_weights`; their own configs, then, do nothing more. VeLoRA changes
# the backward pass only, and MonteCLoRA samples in training only. `ensure_weight_tying` says where,
# and the keys of the file say it too.
_LORA_HARMLESS = frozenset(
    "corda_config ensure_weight_tying eva_config loftq_config lora_dropout lora_ga_config "
    "megatron_core monteclora_config qalora_group_size runtime_config velora_config".split()
)
_LYCORIS = {"alpha": NUMBER, "modules_to_save": NAMES, "r": COUNT, **_PATTERNS}
_LYCORIS_HARMLESS = frozenset(
    "init_weights module_dropout peft_version rank_dropout use_effective_conv2d".split()
)

FAMILY_FIELDS: dict[str, Fields] = {
    "LORA": Fields(
        {
            "bias": one_of("none", "all", "lora_only"),
            "fan_in_fan_out": FLAG,
            "init_lora_weights": ANY,
            "lora_alpha": NUMBER,
            "lora_bias": FLAG,
            "modules_to_save": NAMES,
            "r": COUNT,
            "use_dora": FLAG,
            "use_rslora": FLAG,
            **_PATTERNS,
        },
        _ABOUT | _WHERE | _LORA_HARMLESS | {"peft_version"},
        _LORA_REFUSED,
    ),
    # PEFT's AdaLoRA inherits LoRA's fields and reads few of them: no r, no alpha_pattern, no
    # rslora, no bias of its own, and no init but its own.
    "ADALORA": Fields(
        {
            "bias": one_of("none", "all", "lora_only"),
            "fan_in_fan_out": FLAG,
            "init_r": COUNT,
            "lora_alpha": NUMBER,
            "modules_to_save": NAMES,
            "rank_pattern": MASKS,
        },
        _ABOUT
        | _WHERE
        | _LORA_HARMLESS
        | frozenset(
            "alpha_pattern beta1 beta2 deltaT init_lora_weights lora_bias orth_reg_weight "
            "peft_version r target_r tfinal tinit total_step use_rslora".split()
        ),
        _LORA_REFUSED | {"use_dora": Refusal("PEFT's AdaLoRA has no DoRA", _AGAIN)},
    ),
    # Which factors there are the keys say, so use_effective_conv2d and decompose_* need not.
    "LOHA": Fields(dict(_LYCORIS), _ABOUT | _WHERE | _LYCORIS_HARMLESS, {}),
    "LOKR": Fields(
        dict(_LYCORIS),
        _ABOUT
        | _WHERE
        | _LYCORIS_HARMLESS
        | frozenset("decompose_both decompose_factor rank_dropout_scale".split()),
        {},
    ),
    # The blocks' size is the tensor's: PEFT adjusts `r` and `oft_block_size` to divisors. PEFT's
    # OFT takes no layer that is stored transposed, and sets `fan_in_fan_out` to False itself.
    "OFT": Fields(
        {
            "bias": one_of("none", "all", "oft_only"),
            "block_share": FLAG,
            "coft": FLAG,
            "eps": BOUND,
            "modules_to_save": NAMES,
            "num_cayley_neumann_terms": COUNT,
            "oft_block_size": ANY,
            "peft_version": ANY,
            "use_cayley_neumann": FLAG,
        },
        _ABOUT | _WHERE | frozenset("fan_in_fan_out init_weights module_dropout r".split()),
        {},
    ),
    # The positions are in the file, so what drew them (mask_type, random_seed, r) is history.
    "SHIRA": Fields(
        {"modules_to_save": NAMES},
        _ABOUT
        | _WHERE
        | frozenset("fan_in_fan_out init_weights mask_type peft_version r random_seed".split()),
        {},
    ),
}
