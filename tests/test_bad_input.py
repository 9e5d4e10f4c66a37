"""Invalid params passed to public functions: sizes, dtypes, other models; nothing changes."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, JaxmixError
from jaxmix.errors import AdapterError, CheckpointError, LayoutError, ShapeError
from jaxmix.families import IA3, OFT, Delta, LoHa, LoRA, Replace

from .converters.adapters.peft.folders import FORMS, SITE, factors, keyed, params, save
from .messages import full_text


def lora(sites=(SITE,), name="style", shape=(6, 4)):
    """Returns a LoRA of ones."""
    update = LoRA(jnp.ones((2, shape[1])), jnp.ones((shape[0], 2)), 1.0)
    return Adapter(dict.fromkeys(sites, update), name=name)


BASE = params(FORMS["lora"])
ANOTHER_MODEL = (
    "Was the adapter trained on another model? If the leaves have other names, pass "
    "layout=jaxmix.Layout(…) with rules."
)
MORE_TOKENS = (
    " If it was trained with more tokens, resize these leaves of the params first, or merge into "
    "the checkpoint with jaxmix.merge_checkpoint(..., resize=True)."
)


# ------------------------------------------------------------------------------------- the base


# A rotation of the input fits any number of rows.
SIZES = [(name, axis) for name in FORMS for axis in (0, 1) if axis or "oft" not in name]


@pytest.mark.parametrize(("name", "axis"), SIZES)
def test_base_of_another_size_is_refused(name, axis, tmp_path):
    """For every family the error names site, factor and both shapes, and asks about the model."""
    form = FORMS[name]
    adapter = jaxmix.load(save(tmp_path, form))
    base = params(form)
    weight = base[f"{SITE}.weight"]
    resized = np.concatenate([weight, weight], axis)
    if name == "shira":  # its positions lie in any weight that is large enough
        resized = weight[:3] if axis == 0 else weight[:, :2]
    with pytest.raises(ShapeError) as caught:
        jaxmix.compose(base | {f"{SITE}.weight": resized}, [adapter])
    message = str(caught.value)
    assert message.startswith(f"factors that do not fit the params:\n  {SITE}: ")
    assert message.endswith(
        "Was the adapter trained on another model, or on a base of another size?"
    )
    flat = (resized.shape[0], resized[0].size)
    assert str(flat) in message and "expected" in message


def test_scalar_weight_is_refused():
    """A leaf without axes is refused as a weight."""
    with pytest.raises(
        LayoutError,
        match=full_text(
            "leaves that can't take an adapter, expected arrays of floats:\n"
            f"  {SITE}: {SITE}.weight is a scalar, expected a tensor with axes"
        ),
    ):
        jaxmix.compose({f"{SITE}.weight": np.array(3, np.float32)}, [lora()])


@pytest.mark.parametrize(
    ("leaf", "description"),
    [
        (np.ones((6, 4), np.int8), "has dtype int8; dequantize or cast it first"),
        (np.ones((6, 4), np.uint8), "has dtype uint8; dequantize or cast it first"),
        (jnp.ones((6, 4), jnp.int32), "has dtype int32; dequantize or cast it first"),
        (jnp.ones((6, 4), jnp.int4), "has dtype int4; dequantize or cast it first"),
        (np.ones((6, 4), bool), "has dtype bool; dequantize or cast it first"),
        (np.ones((6, 4), np.complex64), "has dtype complex64; dequantize or cast it first"),
        (3.0, "is a float"),
        ("weights.bin", "is a str"),
    ],
)
def test_non_float_leaves_are_listed(leaf, description):
    """Quantized, boolean and complex leaves, and non-arrays, are listed by site."""
    base = {f"{SITE}.weight": leaf, "b.weight": leaf, "c.weight": np.ones((6, 4), np.float32)}
    with pytest.raises(LayoutError) as caught:
        jaxmix.compose(base, [lora([SITE, "b", "c"])])
    message = str(caught.value)
    assert message == (
        "leaves that can't take an adapter, expected arrays of floats:\n"
        f"  {SITE}: {SITE}.weight {description}\n  b: b.weight {description}"
    )


def test_weight_stored_as_a_subtree_is_refused():
    """A quantized weight, which many libraries store as a small tree, is refused."""
    base = {SITE: {"weight": {"qvalue": np.ones((6, 4), np.int8), "scale": np.ones(6, np.float32)}}}
    base = {"layer": {"proj": base[SITE]}}
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the layout 'names':\n"
            f"  {SITE}: its weight is not a single array but has parts ({SITE}.weight.qvalue, "
            f"{SITE}.weight.scale). Quantized weights must be dequantized first\n"
            f"{ANOTHER_MODEL} No name map matches all of them to leaves."
        ),
    ):
        jaxmix.compose(base, [lora()])


@pytest.mark.parametrize("shape", [(0, 4), (6, 0), (0, 0)])
def test_empty_weight_keeps_its_shape(shape):
    """An empty weight keeps its shape, or the update does not fit."""
    rows, columns = shape
    a, b, make = jnp.ones((2, columns)), jnp.ones((rows, 2)), jnp.ones
    updates = [LoRA(a, b, 1.0), LoRA(a, b, 1.0, magnitude=make(rows)), LoHa(b, a, b, a, 1.0)]
    updates += [IA3(make(rows)), IA3(make(columns), on_input=True), Replace(make(shape))]
    base = {f"{SITE}.weight": np.ones(shape, np.float32)}
    for update in updates:
        out = jaxmix.compose(base, Adapter({SITE: update}))
        assert out[f"{SITE}.weight"].shape == shape
    turn = Adapter({SITE: OFT(make((columns // 2, 1)))})
    if columns:
        assert jaxmix.compose(base, turn)[f"{SITE}.weight"].shape == shape
    else:
        with pytest.raises(
            ShapeError,
            match=full_text(
                "factors that do not fit the params:\n"
                f"  {SITE}: oft_R (0, 1): 0 blocks of size 2 rotate 0 inputs, expected 0 from "
                f"weight {shape}\nWas the adapter trained on another model, or on a base of "
                "another size?"
            ),
        ):
            jaxmix.compose(base, turn)


def test_float64_without_x64_is_refused():
    """JAX would round it silently."""
    with pytest.raises(
        LayoutError,
        match=full_text(
            "leaves that can't take an adapter, expected arrays of floats:\n"
            f"  {SITE}: {SITE}.weight has dtype float64, which needs "
            "jax.config.update('jax_enable_x64', True), or cast it"
        ),
    ):
        jaxmix.compose({f"{SITE}.weight": np.ones((6, 4))}, [lora()])


def test_missing_sites_list_the_nearest_leaves():
    """All missing sites are listed, each with the leaves of the most similar names."""
    base = {
        f"model.layers.{i}.self_attn.{m}_proj.weight": np.ones((6, 4), np.float32)
        for i in range(2)
        for m in "qkv"
    }
    sites = [f"transformer.layers.{i}.attn.q_proj" for i in range(2)]
    nearest = "model.layers.0.self_attn.v_proj"
    with pytest.raises(LayoutError) as caught:
        jaxmix.compose(base, [lora([*sites, nearest])])
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        "2 sites of the adapters can't be placed in the params by the layout 'names':"
    )
    for line, site, i in zip(lines[1:3], sites, range(2), strict=True):
        assert line.startswith(
            f"  {site}: no leaf for its weight; the nearest are model.layers.{i}."
        )
        assert f"model.layers.{i}.self_attn.q_proj.weight" in line
    assert lines[3] == (
        "Was the adapter trained on another model? If the leaves have other names, pass "
        "layout=jaxmix.Layout(…) with rules. No name map matches all of them to "
        "leaves."
    )


@pytest.mark.parametrize(
    "name", [".norm.weight", "..", "a..b", "." * 3000 + "w", "a." * 40_000 + "w"]
)
def test_names_made_of_dots_are_ignored(name):
    """Names from a damaged or hostile file are ignored, and take no long time."""
    base = {f"{SITE}.weight": np.ones((6, 4), np.float32), name: np.ones((6, 4), np.float32)}
    out = jaxmix.compose(base, lora())
    assert out[name] is base[name] and float(out[f"{SITE}.weight"][0, 0]) == 3
    near = ", ".join([*[x for x in base if x == ".norm.weight"], f"{SITE}.weight"])
    message = full_text(
        "1 site of the adapters can't be placed in the params by the layout 'names':\n"
        f"  another: no leaf for its weight; the nearest are {near}\n"
        f"{ANOTHER_MODEL} No name map matches all of them to leaves."
    )
    if len(name) > 65_536:
        start = r"a\\." * 19
        message = full_text(
            f"the regular expression '{start}…' could take forever: it has 119,998 "
            "characters, expected at most 65,536. Write it without nested repeats, or list the "
            "modules' names."
        )
    with pytest.raises(JaxmixError, match=message):
        jaxmix.compose(base, lora(["another"]))


def test_empty_params_have_no_nearest_leaf():
    """The error for empty params lists no leaves."""
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the "
            "layout 'names':\n"
            "  layer.proj: no leaf for its weight; the nearest are none: "
            "the tree is empty\n"
            "Was the adapter trained on another model? If the leaves "
            "have other names, pass layout=jaxmix.Layout(…) with rules. "
            "No name map matches all of them to leaves."
        ),
    ):
        jaxmix.compose({}, [lora()])


def test_missing_bias_says_what_to_add(tmp_path):
    """The error names the leaf to add."""
    adapter = jaxmix.load(save(tmp_path, "lora-bias"))
    base = {f"{SITE}.weight": BASE[f"{SITE}.weight"]}
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the layout 'names':\n"
            f"  {SITE}: the adapter changes its bias, but the tree has no such leaf; add one of "
            f"zeros\n{ANOTHER_MODEL}"
        ),
    ):
        jaxmix.compose(base, [adapter])


@pytest.mark.parametrize("has_delta", [True, False])
def test_missing_bias_is_not_looked_up_by_other_names(has_delta):
    """Here several name maps fit the names, but the module has a weight under its own name."""
    site = "input_blocks.1.1.proj_in"
    update = Delta(jnp.ones((8, 8)) if has_delta else None, jnp.ones(8))
    with pytest.raises(LayoutError) as caught:
        jaxmix.compose({f"{site}.weight": jnp.ones((8, 8))}, jaxmix.Adapter({site: update}))
    assert str(caught.value) == (
        "1 site of the adapters can't be placed in the params by the layout 'names':\n"
        f"  {site}: the adapter changes its bias, but the tree has no such leaf; add one of zeros\n"
        "Was the adapter trained on another model? If the leaves have other names, pass "
        "layout=jaxmix.Layout(…) with rules."
    )


@pytest.mark.parametrize(
    "update",
    [
        LoRA(jnp.ones((2, 4)), jnp.ones((6, 2)), 1.0, bias=jnp.ones(6)),
        IA3(jnp.ones(6)),
    ],
    ids=["LoRA", "IA3"],
)
@pytest.mark.parametrize("shape", [(5,), (1,), (6, 4), (0,)])
def test_bias_of_another_size_is_refused(update, shape):
    """A bias must have the weight's number of outputs; it is not broadcast."""
    adapter = Adapter({SITE: update})
    base = {**BASE, f"{SITE}.bias": np.ones(shape, np.float32)}
    size = int(np.prod(shape))
    with pytest.raises(
        ShapeError,
        match=full_text(
            "factors that do not fit the params:\n"
            f"  {SITE}: its bias {SITE}.bias has size {size}, expected 6, one number per output\n"
            "Was the adapter trained on another model, or on a base of another size?"
        ),
    ):
        jaxmix.compose(base, [adapter])


@pytest.mark.parametrize("shape", [(5,), (7,), (1,), (0,), (), (7, 1)])
@pytest.mark.parametrize("with_weight", [False, True])
def test_replaced_bias_of_another_size_is_refused(shape, with_weight):
    """Every function refuses it, and neither cuts nor broadcasts it."""
    weight = np.ones((6, 4), np.float32) if with_weight else None
    adapter = Adapter({SITE: Replace(weight, np.ones(shape, np.float32))})
    message = full_text(
        "factors that do not fit the params:\n"
        f"  {SITE}: saved bias has shape {shape}, expected (6,)\n"
        "Was the adapter trained on another model, or on a base of another size?"
        f"{MORE_TOKENS if with_weight else ''}"
    )
    for use in (jaxmix.compose, jax.jit(jaxmix.compose), jaxmix.attach):
        with pytest.raises(ShapeError, match=message):
            use(BASE, adapter)
    with pytest.raises(ShapeError, match=message):
        jaxmix.Bank({"x": adapter}, BASE)


def test_saved_module_of_another_size_is_refused(tmp_path):
    """A saved head for another number of labels is refused."""
    saved = keyed(factors(FORMS["lora"])) | {"score.weight": np.ones((3, 4), np.float32)}
    adapter = jaxmix.load(save(tmp_path, tensors=saved, modules_to_save=["score"]))
    assert isinstance(adapter, Adapter)
    assert isinstance(adapter.updates["score"], Replace)
    base = BASE | {"score.weight": np.ones((2, 4), np.float32)}
    with pytest.raises(
        ShapeError,
        match=full_text(
            "factors that do not fit the params:\n"
            "  score: saved weight has shape (3, 4), expected (2, 4)\n"
            "Was the adapter trained on another model, or on a base of another size?"
            f"{MORE_TOKENS}"
        ),
    ):
        jaxmix.compose(base, [adapter])


# ------------------------------------------------------------------------- nothing is changed


@pytest.mark.parametrize("name", FORMS)
def test_arguments_are_unchanged(name, tmp_path):
    """The dict, its arrays and the adapter's arrays are the same objects with the same bytes."""
    form = FORMS[name]
    adapter, second = (jaxmix.load(save(tmp_path / n, form)) for n in "ab")
    base = params(form) | {"other.weight": np.ones((2, 2), np.float32)}
    leaves = [x for x in jax.tree.leaves((base, adapter, second)) if isinstance(x, np.ndarray)]
    for leaf in leaves:
        leaf.flags.writeable = False
    keys, before = list(base), copy.deepcopy(leaves)
    out = jaxmix.compose(base, [0.5 * adapter, -second])
    jaxmix.mix(adapter, second, strength=[1.0, 2.0])(base)
    assert list(base) == keys and out is not base
    after = [x for x in jax.tree.leaves((base, adapter, second)) if isinstance(x, np.ndarray)]
    assert all(a is b for a, b in zip(after, leaves, strict=True))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(after, before, strict=True))
    assert out["other.weight"] is base["other.weight"]
    assert isinstance(adapter, Adapter) and isinstance(second, Adapter)
    assert (adapter.strength, second.strength) == (1.0, 1.0)


def test_failure_changes_nothing(tmp_path):
    """Nothing changes even with donate, if only the last site is invalid."""
    base = {f"{s}.weight": jnp.ones((6, 4)) for s in "ab"} | {"c.weight": jnp.ones((6, 5))}
    with pytest.raises(
        ShapeError,
        match=full_text(
            "factors that do not fit the params:\n"
            "  c: lora_A has shape (2, 4), expected (2, 5) from weight (6, 5)\n"
            "Was the adapter trained on another model, or on a base of another size?"
        ),
    ):
        jaxmix.compose(base, [lora("abc")], donate=True)
    assert all(float(leaf.sum()) > 0 for leaf in base.values())


def test_every_error_is_a_jaxmix_error_and_a_value_error(tmp_path):
    """JaxmixError and ValueError each catch every error."""
    for kind in (AdapterError, CheckpointError, LayoutError, ShapeError):
        assert issubclass(kind, JaxmixError) and issubclass(kind, ValueError)
    with pytest.raises(
        ValueError,
        match=full_text(
            f"{tmp_path} has no adapter_config.json; found an empty folder. "
            "Pass the folder that PEFT's save_pretrained wrote."
        ),
    ):
        jaxmix.load(tmp_path)
