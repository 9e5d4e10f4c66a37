"""adapter_config.json: invalid files, invalid values, and refused fields."""

import json
from typing import Any

import numpy as np
import pytest

import jaxmix
from jaxmix.converters.adapters.peft.kinds import PEFT_TYPES
from jaxmix.errors import CheckpointError, UnsupportedError

from ....messages import full_text
from .folders import FORMS, SITE, one, refused, save

CONFIG = "adapter_config.json"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not JSON: Expecting value"),
        ("{", "is not JSON: Expecting property name"),
        ('{"r": 8', "is not JSON"),
        ("\ufeff{}", "is not JSON: Unexpected UTF-8 BOM"),
        ("[" * 100_000, "is not JSON"),
        ('{"r": ' + "9" * 5000 + "}", "is not JSON: an integer has 5,000 digits"),
        ("[]", "contains a list, expected a JSON object"),
        ("null", "contains a NoneType, expected a JSON object"),
        ("{}", "peft_type is None, expected one of ADALORA, "),
        ('{"peft_type": 3}', "peft_type is 3, expected one of"),
        ('{"peft_type": ["LORA"]}', "peft_type is ['LORA'], expected one of"),
    ],
)
def test_invalid_config_files(text, problem, tmp_path):
    """The error states the path, the value that was found, and the expected one."""
    folder = save(tmp_path)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    message = refused(CheckpointError, folder)
    assert message.startswith(f"{folder / CONFIG}") and problem in message
    assert "again." in message or "Is it the config of a PEFT adapter?" in message


def test_binary_config(tmp_path):
    """The bytes of another format are refused."""
    folder = save(tmp_path)
    (folder / CONFIG).write_bytes(b"\x80\x04\x95\xff")
    assert f"{folder / CONFIG} is not JSON: 'utf-8' codec" in refused(CheckpointError, folder)


def test_missing_config(tmp_path):
    """The folder's files are listed, and PEFT's inner folders are suggested."""
    folder = save(tmp_path / "a")
    (folder / CONFIG).unlink()
    assert (
        f"{folder} has no {CONFIG}; found adapter_model.safetensors. "
        "Pass the folder that PEFT's save_pretrained wrote." in refused(CheckpointError, folder)
    )
    (tmp_path / "empty").mkdir()
    assert "found an empty folder" in refused(CheckpointError, tmp_path / "empty")
    save(folder / "style")
    assert "There is one in style: pass subfolder='style'." in refused(CheckpointError, folder)
    assert jaxmix.load(folder, subfolder="style").name == "style"


def test_unreadable_config(tmp_path):
    """A folder with the file's name stands for a file that the system refuses to open."""
    folder = save(tmp_path)
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()
    assert (
        f"{folder / CONFIG} can't be read: Is a directory. Expected a file that you may read."
        in refused(CheckpointError, folder)
    )


# ------------------------------------------------------------------------------- wrong values

COUNT, NUMBER, FLAG = "a positive integer", "a finite number", "true or false"
RANKS = "an object that maps regular expressions to positive integers"
PATTERNS = "an object that maps regular expressions to finite numbers"
MASKS = "an object that maps the names of lora_E to lists of true and false"
NAMES = "a list of module names"


@pytest.mark.parametrize(
    ("form", "field", "value", "expected"),
    [
        *(("lora", "r", value, COUNT) for value in (0, -1, 2.5, 8.0, "8", True, [8], {})),
        *(("lora", "lora_alpha", value, NUMBER) for value in ("8", False, [1], 10**400)),
        *(("lora", flag, 1, FLAG) for flag in ("use_dora", "use_rslora", "lora_bias")),
        ("lora", "fan_in_fan_out", "false", FLAG),
        *(("lora", "rank_pattern", v, RANKS) for v in ([1], {"q": 0}, {"q": "2"}, {"(": 2})),
        ("lora", "rank_pattern", {"(?i)q": 2}, RANKS),
        *(("lora", "alpha_pattern", v, PATTERNS) for v in ("q", {"q": None}, {"*": 2})),
        ("lora", "bias", "oft_only", "'none' or 'all' or 'lora_only'"),
        *(("lora", "modules_to_save", value, NAMES) for value in ("score", [3], [""], {"a": 1})),
        *(("adalora", "init_r", value, COUNT) for value in (0, "12")),
        *(("adalora", "rank_pattern", v, MASKS) for v in ([], {"q": 3}, {"q": [1, 0]})),
        ("loha", "alpha", "x", NUMBER),
        ("lokr", "r", 1.0, COUNT),
        ("oft", "eps", -1, "a finite number, 0 or more"),
        ("oft", "num_cayley_neumann_terms", 0, "an integer from 1 to 1,000"),
        ("oft", "block_share", 0, FLAG),
        ("oft", "bias", "lora_only", "'none' or 'all' or 'oft_only'"),
        ("shira", "modules_to_save", True, NAMES),
    ],
)
def test_invalid_values(form, field, value, expected, tmp_path):
    """The error has the field, its value and the valid values; nothing is computed before."""
    folder = save(tmp_path, form, **one(field, value))
    message = refused(CheckpointError, folder)
    printed = json.dumps(value)
    printed = printed if len(printed) <= 60 else printed[:57] + "…"
    assert f"\n  {field} is {printed}, expected {expected}\n" in message
    assert message.startswith(f"{folder / CONFIG}: fields of this {FORMS[form].family} config with")
    assert message.endswith("Was the file edited? Take the one that save_pretrained wrote.")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_nan_and_infinity(number, tmp_path):
    """Python's JSON parser accepts them."""
    folder = save(tmp_path, lora_alpha=12345)
    text = (folder / CONFIG).read_text().replace("12345", number)
    (folder / CONFIG).write_text(text)
    assert "lora_alpha is " in (message := refused(CheckpointError, folder))
    assert "expected a finite number" in message


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ("lora", "r"),
        ("lora", "lora_alpha"),
        ("adalora", "init_r"),
        ("loha", "alpha"),
        ("lokr", "r"),
    ],
)
@pytest.mark.parametrize("null", [True, False])
def test_required_fields(form, field, null, tmp_path):
    """PEFT always writes them, so there is no default."""
    folder = save(tmp_path, form)
    values = json.loads((folder / CONFIG).read_text())
    values |= {field: None}
    if not null:
        del values[field]
    (folder / CONFIG).write_text(json.dumps(values))
    assert f"{field} is missing, expected " in refused(CheckpointError, folder)


def test_invalid_fields_are_listed_together(tmp_path):
    """They are reported before refused fields."""
    message = refused(CheckpointError, save(tmp_path, r=0, use_dora="yes", lora_alpha=None))
    assert [line.split()[0] for line in message.splitlines()[1:-1]] == [
        "lora_alpha",
        "r",
        "use_dora",
    ]
    message = refused(UnsupportedError, save(tmp_path, r=0, arrow_config={}, mystery=3))
    assert "arrow_config = {}" in message and "mystery = 3" in message and "r is 0" not in message


# -------------------------------------------------------------------------------- refused fields


def test_unknown_fields(tmp_path):
    """A field of a newer PEFT is accepted while it is off."""
    fields_off: dict[str, Any] = {
        "new_a": None,
        "new_b": False,
        "new_c": "",
        "new_d": [],
        "new_e": {},
    }
    assert jaxmix.load(save(tmp_path, **fields_off)).sites == (SITE,)
    for on in (True, 0, 0.0, 1, "none", [0], {"a": None}):
        message = refused(UnsupportedError, save(tmp_path, new_a=on, new_b=False))
        assert (
            f"\n  new_a = {json.dumps(on)}: unknown to this version of jaxmix. If it "
            f"does not change the weights, remove it from the file." in message
        )
        assert "new_b" not in message
    assert f"new_a = {json.dumps('x' * 99)[:57]}…: unknown to this version of jaxmix" in refused(
        UnsupportedError, save(tmp_path, new_a="x" * 99)
    )


REFUSED = [(family, field) for family, kind in PEFT_TYPES.items() for field in kind.fields.refused]


@pytest.mark.parametrize(("family", "field"), REFUSED)
def test_refused_fields(family, field, tmp_path):
    """The error has a reason and a remedy; fields that are off for PEFT are read."""
    form = next(name for name, form in FORMS.items() if form.family == family)
    refusal = PEFT_TYPES[family].fields.refused[field]
    message = refused(UnsupportedError, save(tmp_path, form, **one(field, [7])))
    assert (
        f"{tmp_path / CONFIG}: fields of this {family} config that jaxmix does not support"
        in message
    )
    assert f"\n  {field} = [7]: {refusal.reason}. {refusal.remedy}" in message
    assert len(refusal.reason) > 20 and len(refusal.remedy) > 10
    for value_off in (None, False):
        assert jaxmix.load(save(tmp_path, form, **one(field, value_off))).sites == (SITE,)
    # PEFT makes a default config from an empty object, and treats [] as no layers.
    for empty in ([], {}):
        folder = save(tmp_path, form, **one(field, empty))
        if refusal.is_off_when_empty:
            assert jaxmix.load(folder).sites == (SITE,)
        else:
            assert f"{field} = " in refused(UnsupportedError, folder)


@pytest.mark.parametrize(
    "init", [True, False, None, "gaussian", "eva", "mica", "orthogonal", "EVA"]
)
def test_inits_that_do_not_change_the_base(init, tmp_path):
    """They only choose factors."""
    assert jaxmix.load(save(tmp_path, init_lora_weights=init)).sites == (SITE,)


@pytest.mark.parametrize("init", ["pissa_niter_16", "corda", "lora_ga"])
def test_inits_that_change_the_base(init, tmp_path):
    """The error states what was subtracted, and how PEFT converts such an adapter."""
    message = refused(UnsupportedError, save(tmp_path, init_lora_weights=init))
    assert (
        f"init_lora_weights = {init!r}: it subtracted the product of the initial "
        "factors, which depend on data or chance, from the base's weights"
    ) in message
    assert "path_initial_model_for_weight_conversion=folder" in message
    # AdaLoRA only has its own init, whatever the field contains.
    assert jaxmix.load(save(tmp_path, "adalora", init_lora_weights=init)).sites == (SITE,)


@pytest.mark.parametrize("init", ["pissa", "olora", "OLoRA"])
def test_inits_that_need_the_base(init, tmp_path):
    """The part that they subtracted is computed from the base."""
    folder = save(tmp_path, init_lora_weights=init)
    message = refused(CheckpointError, folder)
    assert (
        f"can't be read without the base's weight at {SITE}. Pass the base: jaxmix.load(…, base="
        in message
    )
    base = {f"{SITE}.weight": np.random.default_rng(0).normal(size=(6, 4))}
    update = jaxmix.load(folder, base=base).updates[SITE]
    assert update.size() == "rank 4"
    both = {f"{x}.{SITE}.weight": np.ones((6, 4)) for x in "ab"}
    invalid: list[tuple[Any, str]] = [
        ([SITE], "base is a list of module names. Pass the params, or the base's folder."),
        (
            {"other.weight": np.ones((2, 2))},
            "the params given as base has no such module; the nearest are other. Was the adapter "
            "trained on another model?",
        ),
        (
            both,
            f"several modules of the params given as base match: a.{SITE}, b.{SITE}. Was the "
            "adapter trained on another model?",
        ),
    ]
    for base, problem in invalid:
        message = full_text(
            f"{folder}/adapter_model.safetensors: factors that are not a valid LORA update:\n"
            f"  {SITE}: the adapter needs the weight of {SITE}, but {problem}\nWas the file "
            "edited, or saved before the shards of its factors were gathered?"
        )
        with pytest.raises(CheckpointError, match=message):
            jaxmix.load(folder, base=base)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            "base is a dict without weights that have PyTorch's names, "
            "expected params, a Hugging Face folder, or a list of module "
            "names."
        ),
    ):
        jaxmix.load(folder, base={})


def test_inits_that_are_quantized_or_unknown(tmp_path):
    """LoftQ's base is not available, and an unknown init has unknown effects."""
    message = refused(UnsupportedError, save(tmp_path, init_lora_weights="loftq"))
    assert "LoftQ quantized the base's weights, and the factors fit only the result" in message
    assert "Merge it with PEFT (merge_and_unload) and use the merged model as the base." in message
    for init in ("evaporate", "gaussian2", 3):
        message = refused(UnsupportedError, save(tmp_path, init_lora_weights=init))
        assert f"init_lora_weights = {init!r}: unknown; it may have changed the base" in message


@pytest.mark.parametrize("missing", ["use_cayley_neumann", "num_cayley_neumann_terms", "eps"])
def test_oft_fields_of_older_versions(missing, tmp_path):
    """Older configs lack these fields, but their tensors differ."""
    folder = save(tmp_path, "oft")
    values = json.loads((folder / CONFIG).read_text())
    del values[missing]
    (folder / CONFIG).write_text(json.dumps(values))
    message = refused(CheckpointError, folder)
    assert f"{SITE}: the config has no {missing}, which an OFT of oft_R.weight needs" in message


@pytest.mark.parametrize("version", [None, "0.17.2.dev0@abc", "0.16.0", 18])
def test_old_truncated_series(version, tmp_path):
    """PEFT before 0.18 has another series, and only newer configs state the version."""
    fields = {"use_cayley_neumann": True, "peft_version": version}
    update: Any = jaxmix.load(save(tmp_path, "oft", **fields)).updates[SITE]
    assert update.ends_twice


def test_unchanged_oft(tmp_path):
    """The exact Cayley transform is the same since 0.16, the series since 0.18."""
    for fields in (
        {"peft_version": None},
        {"use_cayley_neumann": True, "peft_version": "0.18.0"},
        {"use_cayley_neumann": True, "peft_version": "1.0.0"},
    ):
        update: Any = jaxmix.load(save(tmp_path, "oft", **fields)).updates[SITE]
        assert not update.ends_twice
