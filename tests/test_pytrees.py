"""Dataclasses as pytrees: structures of different classes differ, also as keys of a cache."""

import re
from dataclasses import dataclass, field

import jax
import numpy as np

from jaxmix.families import Delta, Replace
from jaxmix.pytrees import register_dataclass

from .house.sources import tracked


@register_dataclass
@dataclass(frozen=True, eq=False)
class Left:
    x: object
    y: object = None
    size: int = field(default=2, metadata={"static": True})


@register_dataclass
@dataclass(frozen=True, eq=False)
class Right:
    x: object
    y: object = None
    size: int = field(default=2, metadata={"static": True})


def test_structures_of_different_classes_differ() -> None:
    """Otherwise a cache of compiled programs would confuse the classes."""
    assert jax.tree.structure(Left(1.0)) != jax.tree.structure(Right(1.0))
    assert jax.tree.structure(Left(1.0)) == jax.tree.structure(Left(2.0))
    assert jax.tree.structure(Left(1.0)) != jax.tree.structure(Left(1.0, size=3))
    bias = np.ones(3)
    assert jax.tree.structure(Delta(None, bias)) != jax.tree.structure(Replace(None, bias))


def test_children_have_the_names_of_their_fields() -> None:
    """A mapped tree has the same class and static fields."""
    paths, _ = jax.tree_util.tree_flatten_with_path(Left({"a": 1.0}, 2.0, size=5))
    assert [(jax.tree_util.keystr(path), leaf) for path, leaf in paths] == [
        (".x['a']", 1.0),
        (".y", 2.0),
    ]
    doubled = jax.tree.map(lambda x: 2 * x, Left(1.0, 2.0, size=5))
    assert isinstance(doubled, Left) and (doubled.x, doubled.y, doubled.size) == (2.0, 4.0, 5)


def test_every_dataclass_is_registered_by_our_function() -> None:
    """No source calls JAX's own registration function."""
    paths = [path for path in tracked() if path.suffix == ".py" and path.name != "pytrees.py"]
    pattern = re.compile(r"tree_util(\.| import )register_data" + "class")
    registrations = [
        str(path) for path in paths if pattern.search(path.read_text(encoding="utf-8"))
    ]
    assert registrations == []
