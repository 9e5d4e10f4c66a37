"""Every family and form: a valid folder is read unchanged, a misshaped one is refused."""

import math
from typing import Any

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix import JaxmixError
from jaxmix.errors import AdapterError, CheckpointError, ShapeError, UnsupportedError

from ....messages import full_text
from .folders import FORMS, SITE, factors, keyed, one, params, refused, save

FACTORS = [(name, factor) for name, form in FORMS.items() for factor in form.shapes]
# Without a factor of its own there is no adapter, and without its core LoKr is another form.
NEEDED = [(n, f) for n, f in FACTORS if len(FORMS[n].shapes) > 1 and f != "lokr_t2"]


def misshaped():
    """Yields each factor empty, as saves of shards write it; flat; and with an additional axis."""
    for name, factor in FACTORS:
        shape = FORMS[name].shapes[factor]
        for new in ((0,), (math.prod(shape),), (1, *shape)):
            if new != shape and (factor, new) != ("lora_magnitude_vector", (1, 6)):  # a Conv1d's
                yield name, factor, new


# Checks that need the weight report the names of the family, here by the names in the file.
NAMED: dict[str, str] = {
    "lora_embedding_A": "lora_B",
    "lora_embedding_B": "lora_A",
    "oft_embedding_R.weight": "oft_R",
    "lokr_t2": "lokr_w2",
}


@pytest.mark.parametrize("name", FORMS)
def test_valid_folder_is_read(name, tmp_path):
    """It loads, changes the weight, and the adapter has the folder's name."""
    form = FORMS[name]
    adapter = jaxmix.load(save(tmp_path / name, form))
    assert adapter.name == name and adapter.sites == (SITE,)
    base = params(form)
    out = jaxmix.compose(base, [adapter])
    assert out[f"{SITE}.weight"].shape == form.weight
    assert np.abs(np.asarray(out[f"{SITE}.weight"]) - base[f"{SITE}.weight"]).max() > 1e-3


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_dtypes_are_kept_bit_for_bit(dtype, tmp_path):
    """These include bfloat16, which NumPy lacks, and float64 without JAX's x64."""
    tensors = factors(FORMS["lora"], np.dtype(dtype))
    adapter = jaxmix.load(save(tmp_path, "lora", keyed(tensors)))
    update: Any = adapter.updates[SITE]
    for loaded, saved in (
        (update.a, tensors["lora_A.weight"]),
        (update.b, tensors["lora_B.weight"]),
    ):
        assert loaded.dtype == np.dtype(dtype) and loaded.tobytes() == saved.tobytes()


def broken(form_name, factor, change, tmp_path):
    """Returns the error for one changed factor, at load or at compose."""
    form = FORMS[form_name]
    tensors = factors(form)
    tensors[factor] = change(tensors[factor])
    folder = save(tmp_path, form, keyed(tensors))
    with pytest.raises(JaxmixError) as caught:
        jaxmix.compose(params(form), [jaxmix.load(folder)])
    assert caught.type is ShapeError
    text = str(caught.value)
    assert SITE in text and "expected" in text and text.rstrip().endswith("?")
    return text


@pytest.mark.parametrize("axis", ["first", "last"])
@pytest.mark.parametrize(("form", "factor"), FACTORS)
def test_factor_of_wrong_size_is_refused(form, factor, axis, tmp_path):
    """One element more on an axis: the error names the site, the shape and the expected shape."""
    shape = FORMS[form].shapes[factor]
    position = 0 if axis == "first" else len(shape) - 1
    text = broken(
        form, factor, lambda x: np.concatenate([x, x.take([0], position)], position), tmp_path
    )
    stem = factor.removesuffix(".weight").removesuffix("_a").removesuffix("_b")
    assert stem in text or str(NAMED.get(factor)) in text


@pytest.mark.parametrize(("form", "factor", "new"), list(misshaped()))
def test_factor_with_wrong_number_of_axes_is_refused(form, factor, new, tmp_path):
    """The number of axes is checked before the sizes."""
    text = broken(form, factor, lambda x: np.resize(x, new), tmp_path)
    # A full w2 of three axes is a Conv1d's, so the weight's shape is in the message.
    assert factor.split(".")[0] in text and (str(new) in text or factor == "lokr_w2")


@pytest.mark.parametrize(("form", "factor"), FACTORS)
def test_scalar_factor_is_refused(form, factor, tmp_path):
    """A scalar has no axes."""
    assert "()" in broken(form, factor, lambda x: x.reshape(-1)[0], tmp_path)


@pytest.mark.parametrize(("form", "factor"), NEEDED)
def test_missing_factor_is_refused(form, factor, tmp_path):
    """The error names the missing factor and the existing ones."""
    tensors = factors(FORMS[form])
    del tensors[factor]
    text = refused(CheckpointError, save(tmp_path, form, keyed(tensors)))
    assert str(tmp_path) in text and SITE in text
    assert "expected" in text or "missing" in text
    assert factor.removesuffix("_a").removesuffix("_b") in text


@pytest.mark.parametrize(
    ("form", "field"),
    [("lora", "r"), ("adalora", "init_r"), ("loha", "r"), ("lokr-low", "r"), ("lokr-tucker", "r")],
)
def test_rank_must_match_the_config(form, field, tmp_path):
    """PEFT builds layers with the config's rank, so the factors must have it."""
    text = refused(ShapeError, save(tmp_path, form, **one(field, 3)))
    assert "(2, 4)" in text or "(2, 2" in text
    assert "expected (3" in text or "expected (·, 3" in text or "expected rank 3" in text


def test_rank_follows_the_first_matching_pattern(tmp_path):
    """A pattern matches the end of the path, as in PEFT."""
    patterns = {"other": 5, "pro": 6, r"layer\.\w+": 2, "proj": 7}
    folder = save(tmp_path, r=9, rank_pattern=patterns, alpha_pattern={"proj": 5})
    update: Any = jaxmix.load(folder).updates[SITE]
    assert update.scale == 2.5
    text = refused(ShapeError, save(tmp_path, r=2, rank_pattern={"proj": 4}))
    assert "lora_A.weight has shape (2, 4), expected (4, ·)" in text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("form", ["lora", "loha", "lokr", "adalora", "oft", "shira"])
def test_non_finite_factor_is_refused(form, dtype, value, tmp_path):
    """The error names the file, the keys, the number of such elements, and the remedy."""
    tensors = factors(FORMS[form])
    name = next(iter(tensors))
    tensors[name] = tensors[name].astype(dtype)
    tensors[name].reshape(-1)[-1] = value
    text = refused(AdapterError, save(tmp_path, form, keyed(tensors)))
    assert str(tmp_path / "adapter_model.safetensors") in text
    assert f"{SITE}.{name}: 1 of {tensors[name].size}" in text
    assert "Expected finite factors" in text and "Take an earlier checkpoint" in text


@pytest.mark.parametrize("dtype", ["uint8", "int8", "bool"])
def test_quantized_factor_is_refused(dtype, tmp_path):
    """The error names the dtype and the expected ones."""
    tensors = keyed(factors(FORMS["lora"]))
    key = next(iter(tensors))
    tensors[key] = tensors[key].astype(dtype)
    text = refused(CheckpointError, save(tmp_path, tensors=tensors))
    assert f"{key}: {dict(int8='I8', uint8='U8').get(dtype, 'BOOL')}" in text
    assert "expected float64, float32, float16 or bfloat16" in text
    assert "Save the adapter unquantized" in text


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_integer_factor_is_refused(dtype, tmp_path):
    """Only SHiRA's positions may be integers."""
    tensors = keyed(factors(FORMS["lora"]))
    key = next(iter(tensors))
    tensors[key] = tensors[key].astype(dtype)
    assert f"{key}: {dtype}, expected floats" in refused(
        CheckpointError, save(tmp_path, tensors=tensors)
    )


@pytest.mark.parametrize("positions", [-1, 0.5, 2**31, 1e20])
def test_invalid_positions_are_refused(positions, tmp_path):
    """PEFT on Windows writes positions as floats, which must be integers."""
    tensors = factors(FORMS["shira"])
    tensors["shira_indices"] = tensors["shira_indices"].astype(np.float64)
    update: Any = jaxmix.load(save(tmp_path, "shira", keyed(tensors))).updates[SITE]
    assert update.indices.dtype == np.int32
    tensors["shira_indices"][1, 2] = positions
    text = refused(CheckpointError, save(tmp_path, "shira", keyed(tensors)))
    assert f"{SITE}: shira_indices are not all non-negative integers. Save it again" in text


def test_positions_beyond_the_weight_are_refused(tmp_path):
    """Positions outside of the weight are refused once the weight is known."""
    tensors = factors(FORMS["shira"])
    tensors["shira_indices"][1, 0] = 4
    adapter = jaxmix.load(save(tmp_path, "shira", keyed(tensors)))
    message = full_text(
        "factors that do not fit the params:\n  layer.proj: shira_indices go from 0 to 5 and from "
        "0 to 4, expected rows below 6 and columns below 4 from weight (6, 4)\nWas the adapter "
        "trained on another model, or on a base of another size?"
    )
    with pytest.raises(ShapeError, match=message):
        jaxmix.compose(params(FORMS["shira"]), [adapter])


@pytest.mark.parametrize(
    ("form", "factor", "flag"),
    [("dora", "lora_magnitude_vector", "use_dora"), ("lora-bias", "lora_B.bias", "lora_bias")],
)
def test_factor_without_its_flag_is_refused(form, factor, flag, tmp_path):
    """PEFT would drop it silently, or replace it by random numbers."""
    text = refused(CheckpointError, save(tmp_path, form, **one(flag, False)))
    assert f"{SITE}: {factor} is present, but {flag} is off in the config" in text
    tensors = factors(FORMS[form])
    del tensors[factor]
    text = refused(CheckpointError, save(tmp_path, form, keyed(tensors)))
    assert f"{SITE}: {factor} is missing, but {flag} is on in the config" in text


def test_convolution_with_invalid_b_is_refused(tmp_path):
    """PEFT's B is a convolution with a kernel of one point."""
    tensors = factors(FORMS["lora-conv"])
    tensors["lora_B.weight"] = np.ones((6, 2, 2), np.float32)
    text = refused(ShapeError, save(tmp_path, "lora-conv", keyed(tensors)))
    assert "lora_B.weight has shape (6, 2, 2), expected (out, 2, 1, …)" in text


def test_empty_factor_is_refused(tmp_path):
    """It has the right rank, but its shards were not gathered; no base is needed to see this."""
    tensors = factors(FORMS["lora"]) | {"lora_A.weight": np.ones((2, 0), np.float32)}
    text = refused(ShapeError, save(tmp_path, tensors=keyed(tensors)))
    assert "lora_A.weight has shape (2, 0), expected (2, ·)" in text


def test_grouped_convolution_is_refused(tmp_path):
    """PEFT's LoRA of a grouped convolution is not a change of its weight."""
    shapes = {"lora_A.weight": (2, 2, 3), "lora_B.weight": (6, 1, 1)}
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    text = refused(UnsupportedError, save(tmp_path, tensors=keyed(tensors)))
    assert f"{SITE}: lora_B has 1 of 2 ranks" in text
    assert "no weight of that convolution can do. Train it without that layer" in text


def test_shared_block_must_be_single(tmp_path):
    """With block_share PEFT stores a single block."""
    text = refused(ShapeError, save(tmp_path, "oft", block_share=True))
    assert "oft_R.weight (2, 1), expected one block: block_share is true" in text


def test_two_rotations_of_a_site_are_refused(tmp_path):
    """A site is either an embedding or not."""
    tensors = keyed({**factors(FORMS["oft"]), **factors(FORMS["oft-embedding"])})
    text = refused(CheckpointError, save(tmp_path, "oft", tensors))
    assert "oft_R.weight (2, 1), oft_embedding_R.weight (2, 1): expected one of them" in text


def test_all_invalid_sites_are_listed(tmp_path):
    """One error of the first site's class lists all sites, with the file and the remedy."""
    tensors = {}
    for i in range(3):
        tensors |= keyed(factors(FORMS["lora"]), f"layers.{i}.q")
    tensors["base_model.model.layers.1.q.lora_A.weight"] = np.ones((3, 4), np.float32)
    del tensors["base_model.model.layers.2.q.lora_B.weight"]
    text = refused(ShapeError, save(tmp_path, tensors=tensors))
    assert text.startswith(
        f"{tmp_path / 'adapter_model.safetensors'}: factors that are not a valid LORA "
        f"update:\n  layers.1.q: lora_A.weight has shape (3, 4), expected (2, ·) with "
        f"the config's rank 2\n  layers.2.q: lora_B.weight is missing; found "
        f"lora_A.weight (2, 4)\nWas the file edited, or saved before the shards"
    )
    assert "layers.0.q" not in text


def test_site_pruned_to_rank_zero_is_read(tmp_path):
    """AdaLoRA may leave a site without any rank."""
    masks = {f"{SITE}.lora_E": [False, False]}
    shapes = {"lora_A": (0, 4), "lora_B": (6, 0), "lora_E": (0, 1)}
    shapes = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    adapter = jaxmix.load(save(tmp_path, "adalora", keyed(shapes), rank_pattern=masks))
    base = params(FORMS["adalora"])
    out = jaxmix.compose(base, [adapter])
    assert jax.numpy.array_equal(out[f"{SITE}.weight"], base[f"{SITE}.weight"])


def test_mask_without_a_module_is_refused(tmp_path):
    """PEFT would find no such module, for example if the name still has the adapter's in it."""
    masks = {f"{SITE}.lora_E": [True, True], f"{SITE}.lora_E.default": [True, False]}
    text = refused(CheckpointError, save(tmp_path, "adalora", rank_pattern=masks))
    assert text == (
        f"{tmp_path / 'adapter_config.json'}: rank_pattern has masks for modules "
        f"without factors in the file:\n  {SITE}.lora_E.default\nExpected "
        f"<module>.lora_E of modules in the file. Save it again."
    )
