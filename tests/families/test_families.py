"""The table of families, and tests of single families."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix.families as families
from jaxmix.affine import Base
from jaxmix.families import FAMILIES, OFT, AdaLoRA, LoHa, LoKr, LoRA, Replace, Together, Update
from jaxmix.operators import BlockDiagonal, Dense, Hadamard, Kronecker, LowRank

from .table import ROWS

pytestmark = pytest.mark.usefixtures("no_compiling")

ONE = jnp.ones(())
# Updates that are parts of others, for parts of a weight: no adapter has them.
PARTS = {"jaxmix.families.rows", "jaxmix.families.part_of"}


def subclasses(of: type[Update]) -> Iterator[type[Update]]:
    """All families below a class. A subclass is a family if it has a name of its own."""
    for subclass in of.__subclasses__():
        is_ours = subclass.__module__.startswith("jaxmix.families.") and "family" in vars(subclass)
        if is_ours and subclass.__module__ not in PARTS:
            yield subclass
        yield from subclasses(subclass)


def test_table_lists_every_family() -> None:
    """One file per family, one line in the table, at least one row in the contract's table."""
    for module in pkgutil.iter_modules(families.__path__):
        importlib.import_module(f"jaxmix.families.{module.name}")
    assert set(FAMILIES.values()) == set(subclasses(Update))
    assert {name: family.__name__ for name, family in FAMILIES.items()} == {n: n for n in FAMILIES}
    assert {type(row.update(row.factors(0))) for row in ROWS.values()} == set(FAMILIES.values())
    assert {family.__name__ for family in FAMILIES.values()} <= set(families.__all__)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_docstrings_are_complete(family: type[Update]) -> None:
    """Each has a formula, strength, arguments, errors, an example and a source."""
    doc = inspect.getdoc(family) or ""
    for section in "`` Strength Args: Raises: ShapeError Example: >>> Source:".split():
        assert section in doc, section
    args = doc.split("Args:")[1].split("Raises:")[0]
    assert "(" in args or family is Together
    for field in dataclasses.fields(family):  # pyright: ignore[reportArgumentType]
        assert f"\n    {field.name}: " in args, field.name


def test_shift_has_its_own_structure() -> None:
    """A family's Δ has the family's structure and is not made dense."""
    expected = {
        "lora": LowRank,
        "lora conv2d": LowRank,
        "dora": LowRank,
        "dora embedding": LowRank,
        "adalora": LowRank,
        "loha": Hadamard,
        "loha effective conv2d": Hadamard,
        "lokr full": Kronecker,
        "lokr conv2d core": Kronecker,
        "lokr conv2d full": Kronecker,
        "lokr conv1d core": Kronecker,
        "lokr conv1d full": Dense,
        "replace weight": Dense,
    }
    for name, structure in expected.items():
        row = ROWS[name]
        update = row.update(jax.tree.map(lambda x: x.astype(np.float32), row.factors(0)))
        base = Base(jnp.ones(row.shape), row.shape)
        assert type(update.weight_map(base, ONE).shift) is structure, name


def test_shared_blocks_stay_shared() -> None:
    right = OFT(jnp.ones((1, 6))).weight_map(Base(None, (5, 12)), ONE).right
    assert isinstance(right, BlockDiagonal)
    assert right.blocks.shape == (1, 4, 4) and right.copies == 3


def test_fields_for_export_affect_no_map() -> None:
    """Only writers of files read a kernel or a seed: neither maps nor misfits depend on them."""
    values, tested = {"kernel": (3,), "embedding": True, "seed": 7}, set()
    for row in ROWS.values():
        update = row.update(row.factors(0))
        if update.for_export and type(update) not in tested:
            tested.add(type(update))
            changed: Any = dataclasses.replace(
                update,  # pyright: ignore[reportArgumentType]
                **{name: values[name] for name in update.for_export},
            )
            assert changed.misfit(row.shape) is None
            base = Base(jnp.asarray(row.matrix(row.leaves(0).weight)), row.shape)
            maps_before, maps_after = (
                jax.tree.leaves(x.weight_map(base, ONE)) for x in (update, changed)
            )
            for before, after in zip(maps_before, maps_after, strict=True):
                np.testing.assert_array_equal(before, after)
    assert tested == {family for family in FAMILIES.values() if family.for_export}


@pytest.mark.parametrize("std", [0.0, 0.1])
@pytest.mark.parametrize("terms", [None, 5])
def test_gradients_at_initialization_are_finite(std: float, terms: int | None) -> None:
    """Gradients are finite for a constrained OFT at zero, where its norm isn't differentiable."""
    generator = std * jnp.ones((3, 6))

    def loss(generator: jax.Array) -> jax.Array:
        update = OFT(generator, terms, eps=1e-3)
        return jnp.sum(update.weight_map(Base(None, (5, 12)), ONE)(jnp.arange(60.0).reshape(5, 12)))

    slope = jax.grad(loss)(generator)
    assert bool(jnp.isfinite(slope).all()) and bool((slope != 0).any())


def test_cayley_is_a_rotation() -> None:
    """Rotations are orthogonal in float64 for any size of Q; the series holds near the identity."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        for std, terms, error in ((0.1, None, 1e-13), (30.0, None, 1e-10), (0.01, 5, 1e-4)):
            numbers = jnp.asarray(std * rng.normal(size=(2, 45)))
            r = OFT(numbers, terms).rotations(jnp.ones(()))
            off = jnp.abs(r @ jnp.swapaxes(r, 1, 2) - jnp.eye(10)[None]).max()
            assert off < error
            forward, backward = (OFT(numbers).rotations(jnp.asarray(s)) for s in (1.0, -1.0))
            assert jnp.abs(forward @ backward - jnp.eye(10)[None]).max() < 1e-9


def test_unused_config_is_not_part_of_the_cache_key() -> None:
    """Two updates of a family with equal shapes share a program, whatever their configs."""
    x, y = (jnp.ones((2, 3)),), (jnp.ones((3, 4)),)
    scales = [LoKr(x, y, scale) for scale in (1.0, 0.5)]
    assert jax.tree.structure(scales[0]) == jax.tree.structure(scales[1])
    eps = [OFT(jnp.ones((3, 6)), eps=value) for value in (1e-3, 1e-4)]
    assert jax.tree.structure(eps[0]) == jax.tree.structure(eps[1])


def test_sizes() -> None:
    """The descriptions of sizes for users."""
    z = jnp.zeros
    assert LoRA(z((3, 9)), z((6, 3)), 1.0).size() == "rank 3"
    assert LoRA(z((3, 9)), z((6, 3)), 1.0, magnitude=z(6)).size() == "rank 3 DoRA"
    assert AdaLoRA(z((1, 9)), z((6, 1)), z(1), 1.0).size() == "rank 1"
    core = z((2, 2, 3, 1))
    assert LoHa(z((2, 6)), z((2, 3)), z((2, 6)), z((2, 3)), 1.0, core, core).size() == "rank 2"
    assert LoKr((z((2, 3)),), (z((3, 4)),), 1.0).size() == "full"
    assert OFT(z((1, 496))).size() == "block 32"
    assert Together((Replace(z((6, 9)), z(6)), OFT(z((3, 3))))).size() == (
        "weight and bias + block 3"
    )
