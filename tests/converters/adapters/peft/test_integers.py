"""Numbers of a config that contradict the tensors are refused early, or have no effect.

Every field of every type gets each of `VALUES`, under a memory limit: no array may have a size that
only the config states. Where a field has a meaning, the result follows it.
"""

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxmix
from jaxmix import JaxmixError
from jaxmix.converters.adapters.common.values import FLAG, ROUNDS, SHARE
from jaxmix.converters.adapters.peft.kinds import PEFT_TYPES
from jaxmix.converters.adapters.peft.peft_type import ABOUT, WHERE
from jaxmix.errors import CheckpointError, ShapeError

from .folders import Form, factors, keyed, packed, params, refused, save
from .unsaved import COMMON, UNSAVED
from .written import base_of, folders

Row = tuple[dict[str, np.ndarray], dict[str, Any], dict[str, np.ndarray]]

VALUES = ((2**40, 0, 2.5), (-1, True, "8", 10**400))
# By field: what Δ is affine in. PEFT takes an alpha that is off for another one.
SCALES: dict[str, Callable[[float], float]] = dict.fromkeys(
    ("alpha", "lora_alpha", "psoft_alpha", "randlora_alpha", "scaling"), lambda value: value
)
OFF = {"ADALORA": lambda value: value <= 0, "DEFT": lambda value: value == 0}
# What else may change the result: seeds, rounds of an SVD, and bounds on a rotation.
FREE = ("cayley_neumann_eps", "eps", "projection_prng_key", "projection_seed", "proj_seed")
FREE += ("psoft_svd_lowrank_niter", "random_loc_seed", "random_seed")
NEEDS = {"ADAMSS": "sklearn"}
DRAWN = ("fourierft", "waveft")  # PEFT draws their positions again from the seed
SAVED_ALONE = ("bdlora", "bone", "miss-mini", "osf", "shira", "unilora")


def _rows() -> dict[str, str]:
    """One row per type: the first that is written of each, and all of `UNSAVED`.

    DoRA is left out because its weight is not affine in ``lora_alpha``.
    """
    written: dict[str, str] = {}
    for name, (tensors, config) in folders().items():
        is_dora = any("lora_magnitude_vector" in key for key in tensors)
        if not is_dora and config["peft_type"] not in written.values():
            written[name] = config["peft_type"]
    return written | {f"unsaved {name}": form.family for name, form in UNSAVED.items()}


ROWS = _rows()


def _row(name: str) -> Row:
    """Tensors, config and base."""
    if not name.startswith("unsaved "):
        if name in DRAWN:
            pytest.importorskip("torch")
        tensors, config = folders()[name]
        return tensors, config, base_of(name)
    name = name.removeprefix("unsaved ")
    form = UNSAVED[name]
    if name not in SAVED_ALONE:
        pytest.importorskip("torch")
    pytest.importorskip(NEEDS.get(form.family, "numpy"))
    tensors = keyed(factors(form)) | COMMON.get(name, {})
    return tensors, {"peft_type": form.family, **form.config}, params(form)


@pytest.fixture
def small_memory() -> Iterator[None]:
    """Limits memory to 2 GiB above the process's current use."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(pages.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**31, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _composed(folder: Path, row: Row, field: str = "", value: Any = None) -> dict[str, Any]:
    """The base composed with the row's adapter, with one field changed."""
    tensors, config, base = row
    folder.mkdir(exist_ok=True)
    changed = {**config, field: value} if field else config
    (folder / "adapter_config.json").write_text(json.dumps(changed))
    (folder / "adapter_model.safetensors").write_bytes(packed(tensors))
    composed = jaxmix.compose(base, jaxmix.load(folder, base=base))
    return {name: np.asarray(leaf, np.float64) for name, leaf in composed.items()}


def _values(row: Row, values: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """Fields with values for them; true is not a number where a flag is expected."""
    _, config, _ = row
    fields = PEFT_TYPES[config["peft_type"]].fields
    names = {*fields.supported, *fields.harmless, *config} - ABOUT - WHERE - {"peft_type"}
    for name in sorted(names):
        is_flag = fields.supported.get(name) is FLAG or name.startswith("init_")
        yield from ((name, value) for value in values if not (is_flag and value is True))


@pytest.mark.one_of(2)
@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize(
    "values", [VALUES[0], pytest.param(VALUES[1], marks=pytest.mark.thorough)], ids=["few", "more"]
)
@pytest.mark.parametrize("name", ROWS)
def test_every_number_of_a_config(name: str, values: tuple[Any, ...], tmp_path: Path) -> None:
    """The result is right, or a jaxmix error, within the memory of the tensors."""
    row = _row(name)
    plain, family = _composed(tmp_path / "x", row), ROWS[name]
    lines: dict[str, list[dict[str, Any]]] = {}
    for field, value in _values(row, values):
        try:
            output = _composed(tmp_path / "x", row, field, value)
        except JaxmixError as error:
            assert len(str(error)) > 30, (field, value)
            continue
        if field in FREE:
            assert all(np.isfinite(leaf).all() for leaf in output.values()), (field, value)
            continue
        expected = plain
        if field in SCALES and not OFF.get(family, lambda _: False)(value):
            if field not in lines:
                lines[field] = [_composed(tmp_path / "x", row, field, alpha) for alpha in (1, 2)]
            first, second = lines[field]
            expected = {
                leaf: first[leaf] + (value - 1) * (second[leaf] - first[leaf]) for leaf in first
            }
        elif field in SCALES:
            continue
        elif family == "LOKR" and field == "r":  # both factors are full: it only affects the scale
            old = row[1]["r"] / value
            expected = {leaf: row[2][leaf] + old * (plain[leaf] - row[2][leaf]) for leaf in plain}
        for leaf, numbers in output.items():
            largest = np.abs(expected[leaf]).max()
            np.testing.assert_allclose(
                numbers / largest, expected[leaf] / largest, atol=2e-5, err_msg=f"{field} = {value}"
            )


def test_every_type_is_covered() -> None:
    """The table above is not empty."""
    assert set(ROWS.values()) == set(PEFT_TYPES)


# -------------------------------------------------------------------- the message of each check

_TINY = UNSAVED["tinylora"]
_V = COMMON["tinylora"]
WRONG: dict[str, tuple[str, dict[str, Any], type[JaxmixError], str]] = {
    "a rank": ("unilora", {"r": 2**40}, ShapeError,
        "r = 1099511627776 makes 10,995,116,277,760 numbers for the 1 modules that it adapts in "
        "the params given as base, expected at most 16,777,216: no other tensor of the file "
        "has this rank. Was the config edited?"),
    "rounds": ("psoft-lowrank", {"psoft_svd_lowrank_niter": 2**40}, CheckpointError,
        "psoft_svd_lowrank_niter is 1099511627776, expected an integer from 0 to 1,000"),
    "an alpha of 0": ("psoft", {"psoft_alpha": 0}, CheckpointError,
        "psoft_alpha is 0, by which PEFT divides the base's singular values, expected another"),
    "vectors": ("tinylora", {"u": 2**40}, ShapeError,
        "tinylora_v.0 (3,), expected (1099511627776,) by the config's u"),
    "a share": ("tinylora", {"weight_tying": -1e308}, CheckpointError,
        "weight_tying is -1e+308, expected a number from 0 to 1"),
}  # fmt: skip


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("case", WRONG)
def test_numbers_that_contradict_the_tensors(case: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    name, fields, kind, text = WRONG[case]
    form = UNSAVED[name]
    tensors = keyed(factors(form)) | COMMON.get(name, {})
    folder = save(tmp_path, form, tensors, **fields)
    assert text in refused(kind, folder, base=params(form))


@pytest.mark.usefixtures("small_memory")
def test_rank_with_quadratic_memory(tmp_path: Path) -> None:
    """PEFT computes A and B with an SVD of the weight, so P of 30,000² numbers contradicts them."""
    shapes = {"tinylora_A": (30_000, 1), "tinylora_B": (1, 30_000)}
    form = Form("TINYLORA", {**_TINY.config, "r": 30_000}, shapes, (1, 1))
    folder = save(tmp_path, form, keyed(factors(form)) | _V)
    text = refused(ShapeError, folder, base=params(form))
    assert "(1, 30000), expected a rank that a weight of these sizes has" in text


@pytest.mark.usefixtures("small_memory")
def test_blocks_with_quadratic_memory(tmp_path: Path) -> None:
    """A file of 256 KiB with one block per row would need 16 GiB."""
    shapes = {"lora_A.weight": (65_536, 1), "lora_B.weight": (1, 65_536)}
    config = {**UNSAVED["bdlora"].config, "r": 65_536}
    config["use_bdlora"] = {"nblocks": 65_536, "target_modules_bd_a": ["proj"]}
    folder = save(tmp_path, Form("LORA", config, shapes, (1, 65_536)))
    assert refused(ShapeError, folder).splitlines()[1] == (
        "  layer.proj: a factor of shape (65536, 1) in 65536 blocks has 4,294,967,296 numbers as a "
        "matrix, expected at most 268,435,456. Was nblocks edited?"
    )


def test_more_values_than_the_weight(tmp_path: Path) -> None:
    """Where positions are drawn again, jaxmix raises the error, not torch."""
    pytest.importorskip("torch")
    config, shapes = UNSAVED["supertuning"].config, {"supertuning_values": (25,)}
    form = Form("SUPERTUNING", {**config, "r": None, "lora_alpha": None}, shapes)
    text = refused(ShapeError, save(tmp_path, form), base=params(form))
    assert "supertuning_values has 25 numbers, expected at most 24 from the base's weight" in text


def test_vectors_under_other_names(tmp_path: Path) -> None:
    """TinyLoRA vectors in the expected number but with other names are refused."""
    pytest.importorskip("torch")
    tensors = keyed(factors(_TINY)) | {"base_model.tinylora_v.7": np.ones(3, np.float32)}
    text = refused(CheckpointError, save(tmp_path, _TINY, tensors), base=params(_TINY))
    assert "the file has the vectors ['tinylora_v.7'], expected 1 from tinylora_v.0 on" in text


def test_more_butterfly_factors_than_a_number_has_digits(tmp_path: Path) -> None:
    form = Form("BOFT", {}, {"boft_R": (20_000, 1, 2, 2), "boft_s": (6, 1)})
    assert (
        "20000 butterfly factors need blocks of even size, and the number of blocks must be a "
        "multiple of 2^19999"
    ) in refused(ShapeError, save(tmp_path, form))


def test_old_oft_without_bound_and_blocks(tmp_path: Path) -> None:
    """``eps`` is null if ``coft`` is off."""
    form = Form("OFT", {"eps": None, "coft": False}, {"oft_r": (3, 2, 2)})
    assert jaxmix.load(save(tmp_path / "a", form)).sites == ("layer.proj",)
    empty = Form("OFT", {"coft": True}, {"oft_r": (0, 2, 2)})
    assert "oft_r (0, 2, 2), expected (blocks, b, b)" in refused(
        ShapeError, save(tmp_path / "b", empty)
    )


def test_bounds_of_integers_and_shares() -> None:
    assert ROUNDS.holds(0) and ROUNDS.holds(10) and ROUNDS.holds(1000)
    assert not any(map(ROUNDS.holds, (-1, 1001, False, True, 0.0, 2.5, "8", 2**40)))
    assert all(map(SHARE.holds, (0, 1, 0.3)))
    assert not any(map(SHARE.holds, (-0.1, 1.1, True, "1", 10**400)))
