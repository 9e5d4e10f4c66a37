"""jaxmix matches the forward of PEFT's mixed model for every order of adapters that PEFT loads."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxmix

from ..goldens.nets import MLP
from .harness import TOLERANCE, TorchNet, difference, forward, inputs, mixed_model, state
from .ours import jaxmix_model
from .stacks import ADDITIVE_AND_OFT, KINDS, folders_of, stacks

X = inputs(MLP)
REFUSED = "SHiRA does not support nested base layers"
Record = Callable[[str, object], None]


def compare(
    model: TorchNet, saved: Path, selected: list[tuple[str, ...]], record_property: Record
) -> tuple[int, int]:
    """Compares all stacks and lists those that differ; returns (compared, refused by PEFT)."""
    errors, refused = {}, []
    for stack in selected:
        folders = [saved / name for name in folders_of(stack)]
        try:
            truth = forward(mixed_model(model, folders), X)
        except ValueError as error:
            if REFUSED not in str(error):
                raise
            refused.append(stack)
            continue
        errors[stack] = difference(forward(jaxmix_model(model, folders), X), truth)
    mismatched = {stack: error for stack, error in errors.items() if not error < TOLERANCE}
    # PEFT refuses exactly SHiRA over other families.
    assert all("shira" in stack[1:] for stack in refused)
    lines = "\n".join(f"  {' -> '.join(s)}: {e:.1e}" for s, e in list(mismatched.items())[:40])
    assert not mismatched, f"{len(mismatched)} of {len(errors)} stacks differ from PEFT:\n{lines}"
    record_property("parity_cases", len(errors))
    record_property("parity_worst", max(errors.values(), default=0.0))
    return len(errors), len(refused)


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.one_of(2)
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_match(kind: str, mlp: TorchNet, saved: Path, record_property: Record) -> None:
    """Every single adapter and every ordered pair of the seven families match."""
    repeated_adapters = [(kind,) * n for n in range(1, 5)]
    selected = repeated_adapters + [(kind, other) for other in KINDS if other != kind]
    compared, refused = compare(mlp, saved, selected, record_property)
    assert (compared, refused) == ((10, 0) if kind == "shira" else (9, 1))


# Rotations do not commute with others; triples of the other kinds are thorough.
FIRSTS = [pytest.param(kind, marks=[] if kind == "oft" else pytest.mark.thorough) for kind in KINDS]


@pytest.mark.parametrize("kind", FIRSTS)
def test_triples_match(kind: str, mlp: TorchNet, saved: Path, record_property: Record) -> None:
    """Every ordered triple of the seven families matches."""
    selected = [(kind, *others) for others in stacks(KINDS, 2)]
    compared, refused = compare(mlp, saved, selected, record_property)
    assert (compared, refused) == ((43, 6) if kind == "shira" else (36, 13))


@pytest.mark.thorough
@pytest.mark.parametrize("second", ADDITIVE_AND_OFT)
@pytest.mark.parametrize("first", ADDITIVE_AND_OFT)
def test_quadruples_match(
    first: str, second: str, mlp: TorchNet, saved: Path, record_property: Record
) -> None:
    """Every ordered quadruple of LoRA, LoHa, LoKr, AdaLoRA and OFT matches."""
    selected = [(first, second, *others) for others in stacks(ADDITIVE_AND_OFT, 2)]
    assert compare(mlp, saved, selected, record_property) == (25, 0)


def test_wrong_order_is_detected(mlp: TorchNet, saved: Path) -> None:
    """Another order gives another output, so the tests above can fail."""
    for stack in (("lora", "oft"), ("oft", "oft"), ("oft", "loha"), ("dora", "adalora")):
        folders = [saved / name for name in folders_of(stack)]
        truth = forward(mixed_model(mlp, folders), X)
        reversed_output = forward(jaxmix_model(mlp, folders[::-1]), X)
        assert difference(reversed_output, truth) > 1e-3, stack


def test_mix_applies_adapters_in_the_given_order(mlp: TorchNet, saved: Path) -> None:
    """Without `peft_stack` two rotations apply in the given order, which is not PEFT's."""
    folders = [saved / "oft0", saved / "oft1"]
    with jax.enable_x64(True):
        a, b = (jaxmix.load(folder, name=folder.name) for folder in folders)
        in_given_order = jaxmix.compose(state(mlp), [a, b])
        steps = jaxmix.compose(jaxmix.compose(state(mlp), [a]), [b])
    site = "layers.1.lin.weight"
    assert difference(np.asarray(in_given_order[site]), np.asarray(steps[site])) < TOLERANCE
    truth = forward(mixed_model(mlp, folders), X)
    output = forward(jaxmix_model(mlp, folders), X)
    assert difference(output, truth) < TOLERANCE
