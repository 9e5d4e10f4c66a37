"""Errors for the types that add a Δ: invalid files and exports."""

import builtins
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from jaxmix.converters.adapters.peft.kinds import PEFT_TYPES
from jaxmix.errors import CheckpointError, JaxmixError, ShapeError, UnsupportedError
from jaxmix.families import AdaMSS, FourierFT, SuperTuning, TinyLoRA, Update, VeRA

from .folders import SITE, Form, keyed, refused, save

# Drawing and clustering need PEFT's packages; the messages without them are tested too.
drawn = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("sklearn", "torch")), reason="draws with torch"
)

S, C, U = ShapeError, CheckpointError, UnsupportedError
Case = tuple[str, Mapping[str, Any], Mapping[str, Any], type[JaxmixError], str]


def z(*shape: int) -> Any:
    """An array of this shape."""
    return np.zeros(shape)


_VERA = {"r": 2, "projection_prng_key": 0}
_VERA_PAIR = {"/vera_A": z(2, 4), "/vera_B": z(6, 2)}
_RAND = {"r": 2, "randlora_alpha": 4, "projection_prng_key": 0}
_RAND_SITE = {"randlora_lambda": z(2, 2), "randlora_gamma": z(2, 4)}
_VB = {"r": 2, "num_vectors": 5, "vector_length": 2, "topk": 2}
_VB_SITE = {"vblora_logits_A": z(2, 2, 5), "vblora_logits_B": z(3, 2, 5)}
_BANK = {"/vblora_vector_bank": z(5, 2)}
_TOP = {
    "vblora_logits_A_topk_weights": z(2, 2, 1),
    "vblora_logits_B_topk_weights": z(3, 2, 1),
    "vblora_logits_A_topk_indices": np.zeros((2, 2, 2), np.uint8),
    "vblora_logits_B_topk_indices": np.full((3, 2, 2), 5, np.uint8),
}
_UNI = {"r": 2, "theta_d_length": 5, "save_indices": True}
_UNI_SITE = {
    "unilora_indices_A": np.zeros((2, 4), np.int64),
    "unilora_indices_B": np.full((6, 2), 5),
    "unilora_scales_A": z(2, 4),
    "unilora_scales_B": z(6, 2),
}
_TINY = {"r": 2, "u": 3, "projection_seed": 42, "weight_tying": 0.0}
_TINY_SITE = {"tinylora_A": z(2, 4), "tinylora_B": z(6, 2), "tinylora_P": z(3, 2, 2)}
_GRA = {"r": 4, "hybrid_r": 0, "gralora_k": 2, "alpha": 4}
_GRA_SITE = {"gralora_A": z(2, 2, 4), "gralora_B": z(2, 4, 3)}
_SUPER = {"sparsity": 0.9}
_PLACES = {"supertuning_values": z(2), "supertuning_indices": np.zeros(2, np.int32)}
_WAVE = {"random_loc_seed": 777, "scaling": 25.0, "wavelet_family": "coif4"}

# Tensors with a slash belong to the whole model, all others to one site.
BAD: dict[str, Case] = {
    "vera, rank": ("VERA", _VERA, {"vera_lambda_b": z(6), "vera_lambda_d": z(3), **_VERA_PAIR}, S,
        "vera_lambda_b (6,), vera_lambda_d (3,), expected (out,) and (2,) with rank 2"),
    "vera, projections": ("VERA", _VERA, {"vera_lambda_b": z(6), "vera_lambda_d": z(2),
        "/vera_A": z(2, 4), "/vera_B": z(6, 3)}, S,
        "vera_A (2, 4), vera_B (6, 3), expected (2, in) and (out, 2) with rank 2"),
    "vera, not saved": ("VERA", _VERA, {"vera_lambda_b": z(6), "vera_lambda_d": z(2)}, C,
        "vera_A or vera_B is missing, but save_projection is true"),
    "vera, no base": ("VERA", {**_VERA, "save_projection": False},
        {"vera_lambda_b": z(6), "vera_lambda_d": z(2)}, C,
        "Pass the base: jaxmix.load(…, base=…)"),
    "pvera, samples": ("PVERA", {**_VERA, "sample_at_inference": True},
        {"pvera_lambda_b": z(6), "pvera_lambda_d": z(4)}, U,
        "sample_at_inference = true: PEFT draws new numbers at every call, for every "
        "token, which no fixed weight computes. Set it to false for the mean"),
    "randlora, rank": ("RANDLORA", _RAND, {"randlora_lambda": z(3, 2), "randlora_gamma": z(2, 4),
        "/randlora_A": z(2, 1, 4), "/randlora_B": z(6, 2, 2)}, S,
        "randlora_lambda has shape (3, 2), expected (2, n)"),
    "randlora, bases": ("RANDLORA", _RAND, {**_RAND_SITE, "/randlora_A": z(2, 1, 4),
        "/randlora_B": z(6, 2, 3)}, S,
        "expected (2, 1, ·), (·, ·, 2), lambda (2, n), gamma (n, ·)"),
    "randlora, not saved": ("RANDLORA", _RAND, _RAND_SITE, C,
        "randlora_A or randlora_B is missing, but save_projection is true"),
    "delora": ("DELORA", {"r": 2}, {"delora_A": z(2, 4), "delora_B": z(6, 2),
        "delora_lambda": z(2), "delora_w_norm": z(4)}, S,
        "expected delora_lambda (1,), delora_w_norm (in,)"),
    "gralora, grid": ("GRALORA", _GRA, {**_GRA_SITE, "gralora_B": z(3, 4, 2)}, S,
        "gralora_B (3, 4, 2), expected (2, in/2, 4) and (2, 4, out/2), and no general ones"),
    "gralora, hybrid": ("GRALORA", {**_GRA, "hybrid_r": 1}, {**_GRA_SITE,
        "gralora_A_general.weight": z(2, 4), "gralora_B_general.weight": z(6, 2)}, S,
        "expected (2, in/2, 4) and (2, 4, out/2), general (1, in) and (out, 1)"),
    "c3a": ("C3A", {"block_size": 2}, {"c3a_kernel": z(3, 2)}, S,
        "c3a_kernel has shape (3, 2), expected (out/b, in/b, b)"),
    "vblora, no bank": ("VBLORA", _VB, _VB_SITE, C,
        "vblora_vector_bank is missing, which all sites share"),
    "vblora, bank": ("VBLORA", _VB, {**_VB_SITE, "/vblora_vector_bank": z(5, 3)}, S,
        "vblora_vector_bank has shape (5, 3), expected (5, 2) from the config"),
    "vblora, logits": ("VBLORA", _VB, {**_VB_SITE, **_BANK, "vblora_logits_B": z(3, 2, 4)}, S,
        "vblora_logits_B has shape (3, 2, 4), expected three axes with r = 2 and num_vectors = 5"),
    "vblora, topk": ("VBLORA", {**_VB, "topk": 6}, {**_VB_SITE, **_BANK}, S,
        "topk is 6, but vblora_logits_A has 5 logits per subvector"),
    "vblora, saved topk": ("VBLORA", {**_VB, "topk": 3, "save_only_topk_weights": True},
        {**_TOP, **_BANK}, S,
        "expected three axes with r = 2 and topk = 3, and topk − 1 for the weights"),
    "vblora, beyond": ("VBLORA", {**_VB, "save_only_topk_weights": True}, {**_TOP, **_BANK}, C,
        "vblora_logits_B_topk_indices are not all below 5"),
    "unilora, no vector": ("UNILORA", _UNI, _UNI_SITE, C,
        "unilora_theta_d is missing, which all sites share"),
    "unilora, rank": ("UNILORA", {**_UNI, "r": 3}, {**_UNI_SITE, "/unilora_theta_d": z(5)}, S,
        "expected A's (3, in), B's (out, 3)"),
    "unilora, vector": ("UNILORA", _UNI, {**_UNI_SITE, "/unilora_theta_d": z(6)}, S,
        "unilora_theta_d has shape (6,), expected (5,) from the config"),
    "unilora, beyond": ("UNILORA", _UNI, {**_UNI_SITE, "/unilora_theta_d": z(5)}, C,
        "the indices are not all below 5, the size of unilora_theta_d"),
    "tinylora, rank": ("TINYLORA", {**_TINY, "r": 1}, {**_TINY_SITE, "/tinylora_v.0": z(3)}, S,
        "expected (r, in) and (out, r), with r at most 1"),
    "tinylora, vector": ("TINYLORA", _TINY, {**_TINY_SITE, "/tinylora_v.0": z(4)}, S,
        "tinylora_v.0 (4,), expected (3,) by the config's u"),
    "tinylora, vectors": ("TINYLORA", _TINY, _TINY_SITE, C,
        "the file has the vectors [], expected 1 from tinylora_v.0 on, for 1 modules with "
        "weight_tying 0.0. Were some of the modules left out of it?"),
    "supertuning, sizes": ("SUPERTUNING", _SUPER, {**_PLACES, "supertuning_values": z(3)}, S,
        "expected values (n,) and indices (n,)"),
    "supertuning, not saved": ("SUPERTUNING", _SUPER, {"supertuning_values": z(3)}, C,
        "supertuning_indices is missing, but save_precomputed_indices is true"),
    "supertuning, no rank": ("SUPERTUNING", _SUPER,
        {**_PLACES, "supertuning_lora_A.weight": z(2, 4)}, C,
        "supertuning_lora_A.weight found, but the config has no r"),
    "waveft, no filter": ("WAVEFT", _WAVE, {"waveft_spectrum": z(3)}, U,
        "wavelet_family = 'coif4': jaxmix has the filters of haar, db1, "),
}  # fmt: skip


def tensors(factors: Mapping[str, Any], site: str = SITE) -> dict[str, Any]:
    """Tensors with PEFT's keys."""
    at_site = {name: array for name, array in factors.items() if not name.startswith("/")}
    shared = {f"base_model.{n[1:]}": array for n, array in factors.items() if n.startswith("/")}
    return {**keyed(at_site, site), **shared}


@pytest.mark.parametrize(("family", "config", "shapes", "kind", "message"), BAD.values(), ids=BAD)
def test_invalid_files_are_refused(
    family, config, shapes, kind: type[JaxmixError], message, tmp_path
):
    text = refused(kind, save(tmp_path, Form(family, config, {}), tensors(shapes)))
    assert message in text, text


_BASE = {f"{SITE}.weight": z(6, 4)}


def test_more_entries_than_the_weight(tmp_path):
    form = Form("FOURIERFT", {"random_loc_seed": 777, "scaling": 1.0}, {})
    folder = save(tmp_path, form, keyed({"fourierft_spectrum": z(25)}))
    message = "fourierft_spectrum has shape (25,), expected (n,) with n from 1 to 24"
    assert message in refused(S, folder, base=_BASE)


@pytest.mark.parametrize("family", ["FOURIERFT", "VERA", "SUPERTUNING"])
def test_drawn_factors_need_torch(family, tmp_path, monkeypatch):
    all_arrays = {
        "FOURIERFT": ({"random_loc_seed": 1, "scaling": 1.0}, {"fourierft_spectrum": z(3)}),
        "VERA": (
            {**_VERA, "save_projection": False},
            {"vera_lambda_b": z(6), "vera_lambda_d": z(2)},
        ),
        "SUPERTUNING": (
            {**_SUPER, "save_precomputed_indices": False},
            {"supertuning_values": z(3)},
        ),
    }
    config, arrays = all_arrays[family]
    folder = save(tmp_path, Form(family, config, {}), keyed(arrays))
    _without(monkeypatch, "torch")
    text = refused(C, folder, base=_BASE)
    assert "leaves out " in text and "Install torch" in text, text


@drawn
def test_invalid_adamss_is_refused(tmp_path, monkeypatch):
    """Refuses wrong shapes, a missing scikit-learn, and groups of other sizes than the file's."""
    form = Form("ADAMSS", {"r": 2, "num_subspaces": 2, "random_seed": 0}, {})
    site = {"adamss_A.0": z(1, 2), "adamss_B.0": z(6, 1), "adamss_newB": z(2, 6)}
    message = "expected adamss_newB (r, 4), with one more column for a bias"
    assert message in refused(S, save(tmp_path, form, keyed(site)), base=_BASE)
    folder = save(tmp_path, form, keyed({**site, "adamss_newB": z(2, 4)}))
    with monkeypatch.context() as patch:
        _without(patch, "sklearn")
        text = refused(C, folder, base=_BASE)
        assert "PEFT computes with scikit-learn's k-means. Install it" in text, text
    pytest.importorskip("sklearn")
    base = {f"{SITE}.weight": np.repeat(np.eye(2, 4), 3, 0)}
    text = refused(C, folder, base=base)
    assert "rows, those of adamss_B [6]. PEFT does not save the rows, but computes them" in text, (
        text
    )


def _without(patch: pytest.MonkeyPatch, package: str) -> None:
    """Simulates that a package is not installed."""
    real = builtins.__import__

    def imported(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **options)

    patch.setattr(builtins, "__import__", imported)


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (
            "tinylora_P",
            "tinylora_P is missing: PEFT draws it again from a seed that depends on the module's ",
        ),
        pytest.param(
            "",
            (
                "tinylora_P equals that of 0 of the 2 modules when drawn again from "
                "projection_seed 42"
            ),
            marks=drawn,
        ),
    ],
)
def test_tinylora_of_unknown_order(left_out, message, tmp_path):
    site = {name: array for name, array in _TINY_SITE.items() if name != left_out}
    vectors = {"/tinylora_v.0": z(3), "/tinylora_v.1": z(3)}
    arrays = {**tensors({**site, **vectors}), **keyed(site, "layer.other")}
    text = refused(C, save(tmp_path, Form("TINYLORA", _TINY, {}), arrays))
    assert message in text, text


def _tiny(number: int | None, v: float) -> TinyLoRA:
    return TinyLoRA(z(2, 4), z(6, 2), z(3, 2, 2), v + z(3), number, 42)


_NO_SEED = AdaMSS((z(1, 2),), (z(6, 1),), z(2, 4), z(6))
UNWRITTEN: dict[str, tuple[str, Update, Update, str]] = {
    "two seeds": ("FOURIERFT", FourierFT(z(1), z(2, 1), 1.0, 7), FourierFT(z(1), z(2, 1), 1.0, 8),
        "PEFT's config has one random_loc_seed for all sites, and these differ:"),
    "no seed": ("FOURIERFT", FourierFT(z(1), z(2, 1), 1.0, 7), FourierFT(z(1), z(2, 1), 1.0),
        "PEFT stores a seed instead of positions, and those of these updates come "
        "from no seed. Export them as LoRA (jaxmix.to_lora(adapter, params)):\n  two"),
    "no sparsity": ("SUPERTUNING", SuperTuning(z(1), z(1), sparsity=0.9), SuperTuning(z(1), z(1)),
        "PEFT computes the number of entries from the sparsity, which these do not have:\n  two"),
    "no numbers": ("TINYLORA", _tiny(0, 1.0), _tiny(None, 2.0), "these have no numbers, or not "
        "those from 0 to 1. Export them as LoRA (jaxmix.to_lora(adapter, params))"),
    "no seed of the groups": ("ADAMSS", _NO_SEED, _NO_SEED,
        "PEFT stores a seed instead of the rows of groups, and those of these updates come from "
        "no seed"),
    "two projections": ("VERA", VeRA(z(2, 4), z(6, 2), z(6), z(2)),
        VeRA(1 + z(2, 4), z(6, 2), z(6), z(2)),
        "PEFT stores one vera_A for all sites, and that of these sites differs from "
        "one:\n  two\nExport them as separate adapters."),
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "first", "second", "message"), UNWRITTEN.values(), ids=UNWRITTEN
)
def test_invalid_exports(family, first, second, message):
    write = PEFT_TYPES[family].write
    assert write is not None
    with pytest.raises(UnsupportedError) as caught:
        write({"one": first, "two": second})
    assert message in str(caught.value)
