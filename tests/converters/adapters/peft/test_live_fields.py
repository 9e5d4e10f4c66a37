"""PEFT's own tables compared with ours: every type and every field, and fields without effect."""

import dataclasses
import json
from typing import Any

import peft
import pytest
from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftType
from peft import ShiraConfig as Shira
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import MontecloraConfig, VeloraConfig

import jaxmix
from jaxmix.converters.adapters.peft.kinds import PEFT_TYPES
from jaxmix.converters.adapters.peft.peft_type import WHERE
from jaxmix.converters.adapters.peft.refusals import REFUSED_TYPES

from ....messages import full_text
from .made import Linears, composed, difference, quiet, reload, run, save

TOLERANCE = 2e-6


def names_of(family: str) -> set[str]:
    """The fields of PEFT's config of a family."""
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType("MISS" if family == "BONE" else family)]
    return {field.name for field in dataclasses.fields(config_class)}


OF_TODAY = [family for family in PEFT_TYPES if family != "BONE"]  # of an older PEFT


@pytest.mark.parametrize("family", OF_TODAY)
def test_every_field_is_in_one_table(family):
    """A field of the installed PEFT that is not classified fails here."""
    fields = PEFT_TYPES[family].fields
    tables = [set(fields.supported), set(fields.harmless), set(fields.refused)]
    unknown = names_of(family) - set.union(*tables)
    assert not unknown, f"say in its file in peft/kinds what {sorted(unknown)} are"
    assert sum(map(len, tables)) == len(set.union(*tables))


@pytest.mark.parametrize("family", OF_TODAY)
def test_tables_have_no_unknown_fields(family):
    """Only fields of older versions may be unknown: a misspelled field would never be used."""
    fields = PEFT_TYPES[family].fields
    listed = set(fields.supported) | set(fields.harmless) | set(fields.refused)
    older = {"OFT": {"alpha_pattern", "rank_pattern"}, "BONE": {"bone"}}
    assert listed - names_of(family) - older.get(family, set()) <= WHERE | {"modules_to_save"}


def test_missing_field_is_detected():
    """The check above fails if a field is removed from the tables."""
    listed = set(PEFT_TYPES["LORA"].fields.supported) - {"use_dora"}
    assert "use_dora" in names_of("LORA") - listed - PEFT_TYPES["LORA"].fields.harmless


def test_every_type_is_read_or_refused():
    """No type is in both tables."""
    read, refused = set(PEFT_TYPES), set(REFUSED_TYPES)
    types = {kind.value for kind in PeftType}
    assert not read & refused
    assert not types - read - refused, "say in converters/adapters/peft/refusals.py what these are"
    assert (read | refused) - types == {"BONE"}  # of an older PEFT


T: dict[str, Any] = {"target_modules": ["one", "two"]}
HARMLESS: dict[str, tuple[type, dict[str, Any]]] = {
    "lora-velora": (LoraConfig, {"r": 4, "velora_config": VeloraConfig(num_groups=4)}),
    "lora-monteclora": (LoraConfig, {"r": 4, "monteclora_config": MontecloraConfig()}),
    "lora-dropout": (LoraConfig, {"lora_dropout": 0.5}),
    "lora-tying": (LoraConfig, {"ensure_weight_tying": True}),
    "lora-mica": (LoraConfig, {"r": 4, "init_lora_weights": "mica"}),
    "lora-orthogonal": (LoraConfig, {"r": 4, "init_lora_weights": "orthogonal"}),
    "lora-gaussian": (LoraConfig, {"init_lora_weights": "gaussian"}),
    "lora-eva": (LoraConfig, {"init_lora_weights": "eva"}),
    "lora-false": (LoraConfig, {"init_lora_weights": False}),
    "lora-qalora-size": (LoraConfig, {"qalora_group_size": 4}),
    "lora-loftq-ignored": (LoraConfig, {"loftq_config": {"loftq_bits": 4}}),
    "adalora-lora's": (
        AdaLoraConfig,
        {
            "init_r": 4,
            "total_step": 9,
            "r": 3,
            "target_r": 2,
            "alpha_pattern": {"one": 99},
            "use_rslora": True,
            "lora_dropout": 0.3,
            "init_lora_weights": "pissa",
            "orth_reg_weight": 0.9,
        },
    ),
    "loha-dropouts": (LoHaConfig, {"rank_dropout": 0.5, "module_dropout": 0.5}),
    "loha-init": (LoHaConfig, {"init_weights": False, "use_effective_conv2d": True}),
    "lokr-dropouts": (
        LoKrConfig,
        {"r": 2, "rank_dropout": 0.5, "rank_dropout_scale": True, "module_dropout": 0.5},
    ),
    "lokr-init": (LoKrConfig, {"r": 1, "init_weights": "lycoris", "decompose_factor": 2}),
    "oft-dropout": (OFTConfig, {"oft_block_size": 4, "module_dropout": 0.5}),
    "oft-r": (OFTConfig, {"r": 2, "oft_block_size": 0, "init_weights": False}),
    "oft-fan": (OFTConfig, {"oft_block_size": 4, "fan_in_fan_out": True}),
    "shira-seed": (Shira, {"r": 2, "random_seed": 3, "init_weights": False}),
    "shira-fan": (Shira, {"r": 2, "fan_in_fan_out": True}),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_fields_without_effect(name, tmp_path):
    """With each of them on, the composed weights equal PEFT's forward."""
    make, fields = HARMLESS[name]
    with quiet():
        config = make(**T, **fields)
    truth = run(save(Linears(), config, tmp_path))
    assert difference(run(composed(Linears(), tmp_path)), truth) < TOLERANCE
    assert difference(run(Linears()), truth) > 1e-2


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        (LoraConfig, "velora_config", VeloraConfig(num_groups=4)),
        (LoraConfig, "monteclora_config", MontecloraConfig()),
        (Shira, "random_seed", 3),
    ],
)
def test_fields_without_effect_are_on_in_the_file(make, field, value, tmp_path):
    """Otherwise the test above would test nothing."""
    save(Linears(), make(r=4 if make is LoraConfig else 2, **T, **{field: value}), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())[field]


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("alpha", [7, 0, -2])
def test_pruned_adalora(alpha, rank, tmp_path):
    """With an alpha of 0 or less PEFT scales a loaded adapter by the remaining rank."""
    masks = {"one.lora_E": [True] * rank + [False] * (4 - rank), "two.lora_E": [False] * 4}
    config = AdaLoraConfig(init_r=4, lora_alpha=alpha, total_step=9, rank_pattern=masks, **T)
    save(Linears(), config, tmp_path)
    truth = run(reload(Linears(), tmp_path))
    assert difference(run(composed(Linears(), tmp_path)), truth) < TOLERANCE
    assert difference(run(Linears()), truth) > 1e-2


def test_named_adapter_is_in_a_subfolder(tmp_path):
    """PEFT writes it into an inner folder, which the error names."""
    with quiet():
        adapted = peft.get_peft_model(Linears(), LoraConfig(**T), adapter_name="style")
        adapted.save_pretrained(str(tmp_path))
    with pytest.raises(
        jaxmix.errors.CheckpointError,
        match=full_text(
            f"{tmp_path} has no adapter_config.json; found README.md, style. "
            "Pass the folder that PEFT's save_pretrained wrote. There is "
            "one in style: pass subfolder='style'."
        ),
    ):
        jaxmix.load(tmp_path)
    assert jaxmix.load(tmp_path, subfolder="style").sites == ("one", "two")
