"""Errors for the types that rotate or read a weight: invalid files and exports."""

from typing import Any

import numpy as np
import pytest

import jaxmix
from jaxmix.converters.adapters.peft.kinds import PEFT_TYPES
from jaxmix.errors import CheckpointError, JaxmixError, ShapeError, UnsupportedError
from jaxmix.families import BOFT, DEFT, FRoD, GLoRA, HiRA, RoAd
from jaxmix.families import PSOFT as Psoft

from .bad_turning import BAD, PSOFT
from .folders import SITE, Form, keyed, refused, save

S, C, U = ShapeError, CheckpointError, UnsupportedError


@pytest.mark.parametrize(("family", "config", "shapes", "kind", "message"), BAD.values(), ids=BAD)
def test_invalid_files_are_refused(
    family, config, shapes, kind: type[JaxmixError], message, tmp_path
):
    form = Form(family, config, shapes)
    tensors = {name: np.ones(shape) for name, shape in shapes.items()}
    tensors |= {name: 0 * array for name, array in tensors.items() if name.endswith(".zeros")}
    text = refused(kind, save(tmp_path, form, keyed(tensors)))
    assert message in text, text


def test_frod_shapes_disagree(tmp_path):
    """The bases do not fit the site."""
    tensors: dict[str, Any] = keyed(
        {"frod_lambda_l": np.ones(4), "frod_lambda_s_values": np.ones(2)}
    )
    shared = {"base_model.frod_V.layer_proj": np.eye(4)}
    for kind, size, indices, message in (
        (S, 4, np.zeros((2, 3), np.int64), "expected (in, in), (2, n), (n,) and (in,)"),
        (S, 4, np.full((2, 2), 4), "has values from 4 to 4, expected 0 to 3"),
        (
            C,
            5,
            np.zeros((2, 2), np.int64),
            "frod_s_size.layer_proj is [5, 5], expected (4, 4), the shape of",
        ),
    ):
        places = {
            "base_model.frod_s_indices.layer_proj": indices,
            "base_model.frod_s_size.layer_proj": np.array([size, size]),
        }
        text = refused(kind, save(tmp_path, Form("FROD", {}, {}), tensors | shared | places))
        assert message in text, text


@pytest.mark.parametrize(
    ("family", "config", "arrays"),
    [
        ("OSF", {}, {"U_low": np.ones((6, 2)), "S_low": np.ones(2), "V_low": np.ones((2, 4))}),
        ("PSOFT", PSOFT, {"weight": np.ones(1)}),
    ],
)
def test_base_of_another_model(family, config, arrays, tmp_path):
    """Without a base it is requested; another model's is refused."""
    stem = {"OSF": "osf_svd_params", "PSOFT": "psoft_R"}[family]
    tensors = keyed({f"{stem}.{name}": array for name, array in arrays.items()})
    folder = save(tmp_path, Form(family, config, {}), tensors)
    assert "Pass the base: jaxmix.load(…, base=…)" in refused(C, folder)
    other_base = {f"{SITE}.weight": np.ones((6, 1))}
    message = f"the base's weight at {SITE} has shape (6, 1), expected "
    assert message in refused(S, folder, base=other_base)


def test_ia3_of_ambiguous_convolution(tmp_path):
    """Its columns could be three points of each channel, or six points of half of them."""
    config = {"feedforward_modules": ["proj"]}
    folder = save(tmp_path, Form("IA3", config, {}), keyed({"ia3_l": np.full((1, 4, 1, 1), 2.0)}))
    assert "Pass the base: jaxmix.load(…, base=…)" in refused(C, folder)
    grouped = {f"{SITE}.weight": np.ones((6, 2, 3, 2))}
    message = "ia3_l scales 4 inputs, and the base's weight has shape (6, 2, 3, 2): in a grouped"
    assert message in refused(U, folder, base=grouped)
    plain = {f"{SITE}.weight": np.ones((6, 4, 3, 1), np.float32)}
    adapter = jaxmix.load(folder, base=plain)
    assert np.all(np.asarray(jaxmix.compose(plain, [adapter])[f"{SITE}.weight"]) == 2)


def test_psoft_without_torch(tmp_path, monkeypatch):
    """The signs of singular vectors depend on torch's LAPACK, so torch is required."""
    folder = save(
        tmp_path, Form("PSOFT", PSOFT, {}), keyed({"psoft_R.weight": np.ones(1, np.float32)})
    )
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    text = refused(C, folder, base={f"{SITE}.weight": np.ones((6, 4), np.float32)})
    assert (
        "leaves out A and B, which PEFT computes from the base's weight by torch's "
        "SVD, whose signs may differ in another"
    ) in text


z = np.zeros
# Updates that PEFT's types can't represent, by site, and the message.
UNWRITTEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "road of two groups": (
        "ROAD",
        {"a": RoAd(z(2), z(2), 1, 2), "b": RoAd(z(2), z(2), 1, 4)},
        "PEFT's config has one group_size for all sites, and these differ:\n  2: a\n "
        " 4: b\nExport them as separate adapters.",
    ),
    "boft of outputs": (
        "BOFT",
        {"a": BOFT(z((1, 2, 2, 2)), z(4), on_output=True)},
        "PEFT's BOFT rotates inputs, not outputs:\n  a",
    ),
    "boft of other permutations": (
        "BOFT",
        {"a": BOFT(z((1, 2, 2, 2)), z(4), np.array([[3, 2, 1, 0]]))},
        "PEFT's BOFT has only the permutations of its butterfly:\n  a",
    ),
    "hira of two ranks": (
        "HIRA",
        {"a": HiRA(z((2, 4)), z((6, 2))), "b": HiRA(z((3, 4)), z((6, 3)))},
        "one r for all sites, and these differ:\n  2: a\n  3: b",
    ),
    "glora on inputs": (
        "GLORA",
        {"a": GLoRA((z((4, 2)), z((2, 4))), on_input=True)},
        "PEFT's GLoRA multiplies A elementwise, and these multiply it from the right:\n  a",
    ),
    "deft of two ranks": (
        "DEFT",
        {"a": DEFT(z((6, 2)), z((2, 4))), "b": DEFT(z((6, 3)), z((3, 4)))},
        "one r for all sites, and these differ:\n  2: a\n  3: b",
    ),
    "deft of no scale": (
        "DEFT",
        {"a": DEFT(z((6, 2)), z((2, 4)), 0.0)},
        "PEFT reads a scale of 0 as no alpha; leave the adapter out",
    ),
    "psoft": (
        "PSOFT",
        {"a": Psoft(z((1, 4)), z((6, 1)), z((1, 1)), 1.0)},
        "a file of PEFT's PSOFT leaves out A and B, and PEFT would compute others "
        "from its base. Convert these to a LoRA, jaxmix.to_lora(adapter, params), "
        "without loss:\n  a",
    ),
    "frod of two numbers of entries": (
        "FROD",
        {
            name: FRoD(np.eye(4), z(count), z((2, count), int), z(4))
            for name, count in (("one", 2), ("two", 5))
        },
        "PEFT's FRoD has one sparse_rate for all sites, and no rate gives these "
        "numbers of entries:\n  one: 2 of 16\n  two: 5 of 16\nExport them as "
        "separate adapters.",
    ),
}


@pytest.mark.parametrize(("family", "updates", "message"), UNWRITTEN.values(), ids=UNWRITTEN)
def test_invalid_exports(family, updates, message):
    write = PEFT_TYPES[family].write
    assert write is not None
    with pytest.raises(UnsupportedError) as caught:
        write(updates)
    assert message in str(caught.value)


def test_rescaled_bias_may_be_absent():
    """IA3 and RoAd rescale an existing bias, and do not require one."""
    road = RoAd(np.full(3, 0.5), np.full(3, 2.0), 1, 2)
    weight, bias = np.ones((6, 4), np.float32), np.ones(6, np.float32)
    without_bias = jaxmix.compose({"a.weight": weight}, [jaxmix.Adapter({"a": road})])
    assert set(without_bias) == {"a.weight"}
    with_bias = jaxmix.compose({"a.weight": weight, "a.bias": bias}, [jaxmix.Adapter({"a": road})])
    np.testing.assert_allclose(
        with_bias["a.bias"], np.asarray(with_bias["a.weight"])[:, 0], rtol=1e-6
    )
    assert np.abs(np.asarray(with_bias["a.bias"]) - bias).max() > 0.5
