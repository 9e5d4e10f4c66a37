"""The parity tables against PEFT's recorded outputs, on a machine with neither torch nor peft.

Where peft is installed, ``tests/parity`` compares the same stacks and layers with PEFT itself, so
these tests are thorough there.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix.converters.adapters.peft import peft_stack

from . import nets
from .archive import Archive

TOLERANCE = 1e-10
STACKS, LAYERS = Archive("stacks"), Archive("layers")
ALL_STACKS: list[list[str]] = STACKS.json("stacks.json")
CASES: list[dict] = LAYERS.json("cases.json")
INSTEAD_OF_PEFT = [] if find_spec("peft") is None else [pytest.mark.thorough]


@pytest.fixture(scope="module")
def stack_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacks the adapters of the stacks."""
    return STACKS.unpack(tmp_path_factory.mktemp("stacks"))


@pytest.fixture(scope="module")
def layer_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacks the adapters of the table of layer types."""
    return LAYERS.unpack(tmp_path_factory.mktemp("layers"))


def composed(
    params: Mapping[str, np.ndarray], folders: Sequence[Path], net: nets.Net
) -> dict[str, np.ndarray]:
    """Returns the weights with the stack of these folders composed in, in float64."""
    with jax.enable_x64(True):
        adapters = [jaxmix.load(folder, name=f"a{i}") for i, folder in enumerate(folders)]
        out = jaxmix.compose(params, [peft_stack(adapters)], layout=nets.layout(net))
        return {name: np.asarray(leaf) for name, leaf in out.items()}


def difference(ours: np.ndarray, truth: np.ndarray) -> float:
    """Returns the largest |ours - truth| over the largest |truth|."""
    assert ours.shape == truth.shape and np.isfinite(ours).all()
    return float(np.abs(ours - truth).max() / np.abs(truth).max())


def test_tables_are_complete() -> None:
    """The archive holds 7 singles, 43 pairs and 259 triples that PEFT loads, and 5⁴ quadruples."""
    counts = [sum(len(stack) == n for stack in ALL_STACKS) for n in range(1, 5)]
    assert counts == [7, 43, 259, 625]
    assert len({tuple(stack) for stack in ALL_STACKS}) == len(ALL_STACKS) == 934
    assert len({case["name"] for case in CASES}) == len(CASES) >= 160


# Pairs hold every family, and stacks of four hold those of three.
@pytest.mark.parametrize(
    ("first", "length"),
    [
        pytest.param(*row, marks=[pytest.mark.thorough] if row[1] == 3 else INSTEAD_OF_PEFT)
        for row in sorted({(stack[0], len(stack)) for stack in ALL_STACKS})
    ],
)
def test_stacks_match_peft(first: str, length: int, stack_folders: Path) -> None:
    """Every stack with this innermost family matches PEFT."""
    net = nets.from_json(STACKS.json("net.json"))
    base, recorded = STACKS.tensors("base.safetensors"), STACKS.tensors("forward.safetensors")
    rows = [i for i, stack in enumerate(ALL_STACKS) if stack[0] == first and len(stack) == length]
    errors = {}
    for i in rows:
        weights = composed(base, [stack_folders / name for name in ALL_STACKS[i]], net)
        ours = nets.run(net, weights, recorded["x"])
        errors[" -> ".join(ALL_STACKS[i])] = difference(ours, recorded["output"][i])
    failures = {stack: error for stack, error in errors.items() if not error < TOLERANCE}
    assert not failures, f"{len(failures)} of {len(errors)} stacks differ from PEFT: {failures}"


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=INSTEAD_OF_PEFT, id=case["name"]) for case in CASES]
)
def test_layer_types_match_peft(case: dict, layer_folders: Path) -> None:
    """Every layer type and form of every family matches PEFT."""
    net = nets.from_json(LAYERS.json("nets.json")[case["net"]])
    base = LAYERS.tensors(f"{case['net']}.safetensors")
    x, truth = base.pop("x"), LAYERS.tensors("output.safetensors")[case["name"]]
    weights = composed(base, [layer_folders / folder for folder in case["folders"]], net)
    assert difference(nets.run(net, weights, x), truth) < TOLERANCE
