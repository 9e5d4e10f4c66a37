"""Modules whose halves diffusers swaps; for some of them the shape decides."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import jaxmix
from jaxmix.converters.comfyui import export_original
from jaxmix.converters.diffusers import export_diffusers
from jaxmix.converters.kohya import export_kohya
from jaxmix.errors import UnsupportedError, option
from jaxmix.families import Delta, DiagOFT, LoHa, LoKr, LoRA, Update
from jaxmix.families.normed import Normed
from jaxmix.placement.regions import Piece, swapped_halves

WIDTH = 4
ORIGINAL = "joint_blocks.{}.context_block.adaLN_modulation.1"
DIFFUSERS = "transformer_blocks.{}.norm1_context.linear"
Arrays = dict[str, np.ndarray]
DRAW = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    """Random numbers."""
    return DRAW.normal(size=shape).astype(np.float32)


def swapped(x: np.ndarray) -> np.ndarray:
    """The halves of the rows in the other order."""
    return np.concatenate(np.split(x, 2)[::-1])


def rows(block: int, last: int) -> int:
    """The last block has a scale and a shift; the others have six of these."""
    return (2 if block == last else 6) * WIDTH


def tree(names: str, last: int) -> Arrays:
    """The modulations of the last two blocks."""
    base = {}
    for block in (last - 1, last):
        base[f"{names.format(block)}.weight"] = normal(rows(block, last), WIDTH)
        base[f"{names.format(block)}.bias"] = normal(rows(block, last))
    return base


KINDS: dict[str, Callable[[int], Update]] = {
    "lora": lambda n: LoRA(normal(2, WIDTH), normal(n, 2), 0.5),
    "dora": lambda n: LoRA(normal(2, WIDTH), normal(n, 2), 0.5, 1 + normal(n) ** 2),
    "loha": lambda n: LoHa(normal(n, 2), normal(2, WIDTH), normal(n, 2), normal(2, WIDTH), 0.7),
    "lokr": lambda n: LoKr((normal(2, 2),), (normal(n // 2, 2),), 0.7),
    "norm": lambda n: Normed(LoRA(normal(2, WIDTH), normal(n, 2), 0.5), 1 + normal(n) ** 2),
    "difference": lambda n: Delta(normal(n, WIDTH), normal(n)),
}


def in_original(in_diffusers: Arrays, last: int) -> Arrays:
    """A tree in diffusers' names by the original ones."""
    tensors = {}
    for block in (last - 1, last):
        for end in ("weight", "bias"):
            x = np.asarray(in_diffusers[f"{DIFFUSERS.format(block)}.{end}"])
            tensors[f"{ORIGINAL.format(block)}.{end}"] = swapped(x) if block == last else x
    return tensors


def composed(base: Arrays, adapter: jaxmix.Adapter) -> Arrays:
    """The tree with the adapter."""
    tensors = jaxmix.compose(dict(base), adapter, names="sd3")
    return {name: np.asarray(x) for name, x in tensors.items()}


def assert_equal(tensors: Arrays, expected: Arrays) -> None:
    """Compares all leaves."""
    assert tensors.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(tensors[name], x, atol=2e-6)


@pytest.mark.parametrize("last", [1, 23, 37])
@pytest.mark.parametrize("kind", KINDS)
def test_context_of_the_last_block_is_swapped_for_every_depth(kind: str, last: int) -> None:
    """Each scheme's adapter has its effect on a tree in the other's names."""
    base = tree(DIFFUSERS, last)
    original = in_original(base, last)
    for names, params, other_params in ((DIFFUSERS, base, original), (ORIGINAL, original, base)):
        updates = {names.format(n): KINDS[kind](rows(n, last)) for n in (last - 1, last)}
        adapter = jaxmix.Adapter(updates)
        output, other_output = composed(params, adapter), composed(other_params, adapter)
        if names == DIFFUSERS:
            output = in_original(output, last)
            assert_equal(other_output, output)
        else:
            assert_equal(in_original(other_output, last), output)


@pytest.mark.parametrize("kind", KINDS)
def test_bias_of_swapped_halves_is_swapped_with_its_weight(kind: str) -> None:
    """The final layer of Flux, whose difference may have a bias."""
    names = ("final_layer.adaLN_modulation.1", "norm_out.linear")
    weight, bias = normal(2 * WIDTH, WIDTH), normal(2 * WIDTH)
    original = {f"{names[0]}.weight": weight, f"{names[0]}.bias": bias}
    base = {f"{names[1]}.weight": swapped(weight), f"{names[1]}.bias": swapped(bias)}
    adapter = jaxmix.Adapter({names[1]: KINDS[kind](2 * WIDTH)})
    in_diffusers_names = jaxmix.compose(base, adapter)
    in_original_names = jaxmix.compose(original, adapter, names="flux")
    for end in ("weight", "bias"):
        expected = swapped(np.asarray(in_diffusers_names[f"{names[1]}.{end}"]))
        np.testing.assert_allclose(in_original_names[f"{names[0]}.{end}"], expected, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_exported_context_has_the_effect_of_the_adapter(kind: str, tmp_path: Path) -> None:
    """kohya's, ComfyUI's and diffusers' files, of adapters in either scheme."""
    last = 23
    base = tree(DIFFUSERS, last)
    original = in_original(base, last)
    for names, params in ((DIFFUSERS, base), (ORIGINAL, original)):
        updates = {names.format(n): KINDS[kind](rows(n, last)) for n in (last - 1, last)}
        adapter = jaxmix.Adapter(updates, name=kind)
        expected = composed(params, adapter)
        expected = in_original(expected, last) if names == DIFFUSERS else expected
        exports = [export_kohya, export_original]
        for export in [*exports, *([export_diffusers] if kind in ("lora", "dora") else [])]:
            file = export(adapter, tmp_path / "x.safetensors", names="sd3", force=True)
            reloaded = jaxmix.load(file, base=original)
            assert_equal(composed(original, reloaded.parts[0]), expected)


def test_rotation_needs_the_base_to_be_exported(tmp_path: Path) -> None:
    """Blocks show the number of rows only, which does not identify the last block."""
    last, file = 23, tmp_path / "x.safetensors"
    base = tree(DIFFUSERS, last)
    blocks = {last - 1: normal(6, 4, 4) * 0.1, last: normal(2, 4, 4) * 0.1}
    adapter = jaxmix.Adapter({DIFFUSERS.format(n): DiagOFT(x) for n, x in blocks.items()})
    with pytest.raises(UnsupportedError) as caught:
        export_kohya(adapter, file, names="sd3")
    assert (
        f"{DIFFUSERS.format(last)}: it has an order of rows that the weight's shape determines: "
        f"pass the base ({option('base', ...)})"
    ) in str(caught.value)
    export_kohya(adapter, file, names="sd3", base=base)
    reloaded = jaxmix.load(file, base=base)
    assert_equal(composed(base, reloaded.parts[0]), composed(base, adapter))


def test_rotation_in_memory_names_needs_the_base(tmp_path: Path) -> None:
    """The same in the other direction."""
    oft = DiagOFT(normal(2, 4, 4) * 0.1)
    adapter = jaxmix.Adapter({ORIGINAL.format(23): oft}, name="oft")
    with pytest.raises(UnsupportedError) as caught:
        export_diffusers(adapter, tmp_path / "x.safetensors", names="sd3")
    assert (
        f"{ORIGINAL.format(23)}: DiagOFT, for {DIFFUSERS.format(23)} in memory, by an order of "
        "rows that the weight's shape determines"
    ) in str(caught.value)


def test_pieces_follow_from_the_shape() -> None:
    """A vector's own shape does not decide, and neither does an unknown shape."""
    piece = Piece("x.bias", swap_ratio=2)
    assert piece.fitted((8, 4)) == swapped_halves("x.bias")
    assert piece.fitted((24, 4)) == (Piece("x.bias"),)
    for shape in ((8,), None):
        (fitted,) = piece.fitted(shape)
        assert fitted.problem == "an order of rows that the weight's shape determines"
