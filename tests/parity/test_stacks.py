"""jaxmix equals the forward of PEFT's mixed model, for every order of adapters that PEFT loads."""

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
    model: TorchNet, saved: Path, wanted: list[tuple[str, ...]], record: Record
) -> tuple[int, int]:
    """Compares all stacks, fails with all that are wrong; (compared, refused by PEFT)."""
    errors, refused = {}, []
    for stack in wanted:
        folders = [saved / name for name in folders_of(stack)]
        try:
            truth = forward(mixed_model(model, folders), X)
        except ValueError as error:
            if REFUSED not in str(error):
                raise
            refused.append(stack)
            continue
        errors[stack] = difference(forward(jaxmix_model(model, folders), X), truth)
    wrong = {stack: error for stack, error in errors.items() if not error < TOLERANCE}
    # What PEFT refuses is what FACTS say it refuses: SHiRA over anything but SHiRA.
    assert all("shira" in stack[1:] for stack in refused)
    lines = "\n".join(f"  {' -> '.join(s)}: {e:.1e}" for s, e in list(wrong.items())[:40])
    assert not wrong, f"{len(wrong)} of {len(errors)} stacks differ from PEFT:\n{lines}"
    record("parity_cases", len(errors))
    record("parity_worst", max(errors.values(), default=0.0))
    return len(errors), len(refused)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs(kind: str, mlp: TorchNet, saved: Path, record_property: Record) -> None:
    """All ordered pairs of the seven kinds, and every single adapter."""
    singles = [(kind,) * n for n in range(1, 5)]
    wanted = singles + [(kind, other) for other in KINDS if other != kind]
    compared, refused = compare(mlp, saved, wanted, record_property)
    assert (compared, refused) == ((10, 0) if kind == "shira" else (9, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_triples(kind: str, mlp: TorchNet, saved: Path, record_property: Record) -> None:
    """All ordered triples of the seven kinds."""
    wanted = [(kind, *rest) for rest in stacks(KINDS, 2)]
    compared, refused = compare(mlp, saved, wanted, record_property)
    assert (compared, refused) == ((43, 6) if kind == "shira" else (36, 13))


@pytest.mark.thorough
@pytest.mark.parametrize("second", ADDITIVE_AND_OFT)
@pytest.mark.parametrize("first", ADDITIVE_AND_OFT)
def test_quadruples(
    first: str, second: str, mlp: TorchNet, saved: Path, record_property: Record
) -> None:
    """All ordered quadruples of LoRA, LoHa, LoKr, AdaLoRA and OFT."""
    wanted = [(first, second, *rest) for rest in stacks(ADDITIVE_AND_OFT, 2)]
    assert compare(mlp, saved, wanted, record_property) == (25, 0)


def test_order_matters(mlp: TorchNet, saved: Path) -> None:
    """A wrong order is seen by this harness: the table above can fail."""
    for stack in (("lora", "oft"), ("oft", "oft"), ("oft", "loha"), ("dora", "adalora")):
        there = [saved / name for name in folders_of(stack)]
        truth = forward(mixed_model(mlp, there), X)
        back = forward(jaxmix_model(mlp, there[::-1]), X)
        assert difference(back, truth) > 1e-3, stack


def test_mix_alone_is_plain_composition(mlp: TorchNet, saved: Path) -> None:
    """Without `peft_stack` two rotations go in the order they are given, which is not PEFT's."""
    folders = [saved / "oft0", saved / "oft1"]
    with jax.enable_x64(True):
        a, b = (jaxmix.load(folder, name=folder.name) for folder in folders)
        plain = jaxmix.compose(state(mlp), [a, b])
        steps = jaxmix.compose(jaxmix.compose(state(mlp), [a]), [b])
    site = "layers.1.lin.weight"
    assert difference(np.asarray(plain[site]), np.asarray(steps[site])) < TOLERANCE
    truth = forward(mixed_model(mlp, folders), X)
    twin = forward(jaxmix_model(mlp, folders), X)
    assert difference(twin, truth) < TOLERANCE
