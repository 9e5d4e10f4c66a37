"""The model that an adapter was trained on, as far as a reader of adapters asks for it.

Some files say less than what their adapter is: the names of the modules with their dots gone, no
factors but those that come out of the base's own weights. Their readers ask here.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmix.converters.checkpoints.conv1d import conv1d_pattern
from jaxmix.converters.checkpoints.huggingface import FLOATS, read_checkpoint
from jaxmix.converters.checkpoints.quantization import look, method_of, unpacked
from jaxmix.errors import CheckpointError, LayoutError
from jaxmix.placement.layout import NAMES
from jaxmix.placement.orientation import OutAxes
from jaxmix.placement.spelling import Spellings
from jaxmix.placement.tree import Tree
from jaxmix.untrusted.patterns import is_match

__all__ = ["BaseModel", "base_model"]


@dataclass(frozen=True)
class BaseModel:
    """The weights of a model by the PyTorch names of its modules, read one by one when asked for.

    A leaf that is no module's weight, such as the stacked one of experts, has its own name.

    Args:
        shapes: ``{module: shape of its weight}``, in PyTorch's axes; None where it is not known.
        read: from a module's name to its weight, in PyTorch's axes.
        what: what it is, for messages.
        read_bias: from a module's name to its bias, None where it has none.
        conv1d: from a module's name to whether its weight is stored as (in, out), as transformers'
            ``Conv1D`` stores it; None where nothing tells.
        order: the names of all leaves in the order in which the caller gave them, as PyTorch's
            ``state_dict`` has the model's own; empty where there is no such order: a folder's files
            and jax's trees are sorted.
    """

    shapes: Mapping[str, tuple[int, ...] | None]
    read: Callable[[str], np.ndarray]
    what: str
    read_bias: Callable[[str], np.ndarray | None] = lambda name: None
    conv1d: Callable[[str], bool | None] = lambda name: None
    order: tuple[str, ...] = ()

    @cached_property
    def _spellings(self) -> Spellings:
        return Spellings(self.shapes)

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules that have a weight."""
        return tuple(self.shapes)

    def shape(self, module: str) -> tuple[int, ...]:
        """The shape of a module's weight, in PyTorch's axes."""
        shape = self.shapes[self._named(module)]
        return self.weight(module).shape if shape is None else shape

    def weight(self, module: str) -> np.ndarray:
        """A module's weight, in PyTorch's axes.

        Raises:
            CheckpointError: if there is no such module, or more than one can be meant.
        """
        return self.read(self._named(module))

    def bias(self, module: str) -> np.ndarray:
        """A module's bias.

        Raises:
            CheckpointError: if there is no such module, or it has no bias.
        """
        found = self.read_bias(self._named(module))
        if found is None:
            raise CheckpointError(
                f"the adapter asks for the bias of {module} in {self.what}, and it has none. Give "
                "the base on which the adapter was trained."
            )
        return found

    def is_conv1d(self, module: str) -> bool | None:
        """Whether a module's weight is stored as (in, out); None if nothing tells."""
        return self.conv1d(self._named(module))

    def has(self, module: str) -> bool:
        """Whether there is exactly one module that can be meant."""
        return len(self._ends(module)) == 1

    def _ends(self, module: str) -> list[str]:
        """The names under which the base may have a module: often one has a prefix more."""
        if module in self.shapes:
            return [module]
        if len(others := self._spellings.of(module)) == 1:
            return list(others)
        return [
            name
            for name in self.shapes
            if name.endswith(f".{module}") or module.endswith(f".{name}")
        ]

    def _named(self, module: str) -> str:
        """The name under which the base has a module."""
        ends = self._ends(module)
        if len(ends) == 1:
            return ends[0]
        found = f"more than one can be meant: {', '.join(ends[:3])}" if ends else "it has none"
        raise CheckpointError(
            f"the adapter asks for the weight of {module} in {self.what}, and {found}. Give the "
            "base on which the adapter was trained."
        )


def base_model(base: Any) -> BaseModel:
    """What ``base=`` of `jaxmix.load` may be, as one thing.

    Args:
        base: a Hugging Face folder; a params tree, whose leaves have the names of PyTorch's modules
            (as `jaxmix.compose` finds them by itself), a flat dict in the model's own order where
            that is asked for; or the modules' names alone, which serve where weights are not.

    Returns:
        The model. Of a folder nothing but headers is read.

    Raises:
        CheckpointError: if it is nothing of the kind.

    Example:
        >>> base_model({"proj": {"kernel": np.ones((3, 2))}}).shape("proj")
        (2, 3)
        >>> base_model(["proj"]).modules
        ('proj',)

    Source: DESIGN.md, words: site, params.
    """
    if isinstance(base, BaseModel):
        return base
    if isinstance(base, str | os.PathLike):
        return _of_folder(Path(base))
    is_names = isinstance(base, list | tuple | set | frozenset) and base
    if is_names and all(isinstance(name, str) for name in base):
        return _of_names(base)
    return _of_params(base)


def _of_folder(folder: Path) -> BaseModel:
    """A Hugging Face folder; packed weights are read as what they stand for."""
    checkpoint = read_checkpoint(folder)
    readout, method = look(checkpoint), method_of(checkpoint)
    tensors = unpacked(checkpoint, readout)
    stored = {
        name.removesuffix(".weight"): tensor
        for name, tensor in tensors.items()
        if tensor.dtype in FLOATS and not name.endswith(".bias")
    }
    shapes = {name: tensor.shape for name, tensor in stored.items()}

    def read_bias(name: str) -> np.ndarray | None:
        tensor = tensors.get(f"{name}.bias")
        return None if tensor is None else tensor.read()

    what = f"{folder}, whose weights {method} packed" if method and readout.wrong else str(folder)
    biases = {name: tensor.shape for name, tensor in tensors.items() if name.endswith(".bias")}
    pattern = conv1d_pattern(checkpoint)
    conv1d = _orientations(shapes, biases, pattern)
    return BaseModel(shapes, lambda name: stored[name].read(), what, read_bias, conv1d)


def _orientations(
    shapes: Mapping[str, tuple[int, ...]],
    biases: Mapping[str, tuple[int, ...]],
    pattern: str | None,
) -> Callable[[str], bool | None]:
    """Whether modules' weights are stored as (in, out), by a pattern or by all shapes."""
    if pattern is not None:
        return lambda name: is_match(pattern, name, full=True)
    axes = OutAxes({**{f"{name}.weight": shape for name, shape in shapes.items()}, **biases})

    def is_conv1d(name: str) -> bool | None:
        axis = axes.of(leaf := f"{name}.weight")
        if axis is None and axes.is_linear(leaf):
            return False
        return None if axis is None else axis == 1

    return is_conv1d


def _of_names(names: Iterable[str]) -> BaseModel:
    """Names alone."""
    what = "a list of module names"

    def read(name: str) -> np.ndarray:
        raise CheckpointError(
            f"the adapter asks for the weight of {name}, but base is {what}. Give the params, or "
            "the base's folder."
        )

    return BaseModel(dict.fromkeys(names), read, what)


# The names of a module's weight, as `layout.NAMES` knows them, and what PyTorch calls no weight.
_ENDS = (".weight", ".kernel", ".embedding", ".scale")


def _no_base(given: Any) -> CheckpointError:
    """The error for something that is no model."""
    return CheckpointError(
        f"base is a {type(given).__name__} without weights that have PyTorch's names, expected "
        "params, a Hugging Face folder, or a list of module names."
    )


def _of_params(params: Any) -> BaseModel:
    """A params tree."""
    try:
        tree = Tree.of(params)
    except LayoutError as error:
        raise _no_base(params) from error
    found = {}
    for leaf in tree.where:
        end = next((end for end in _ENDS if leaf.endswith(end)), "")
        module = leaf.removesuffix(end).removeprefix("params.")
        places = [place for place in NAMES.places(module, "weight") if place.leaf == leaf]
        if places and not leaf.endswith(".bias") and hasattr(tree.leaf(places[0]), "shape"):
            found[module] = places[0]
    if not found:
        raise _no_base(params)
    shapes = {name: place.shape(tree.leaf(place).shape) for name, place in found.items()}

    def read(name: str) -> np.ndarray:
        leaf = tree.leaf(found[name])
        with jax.enable_x64(True):  # float64 stays what it is
            return np.asarray(found[name].get(_array(leaf)))

    def read_bias(name: str) -> np.ndarray | None:
        places = [place for place in NAMES.places(name, "bias") if place.leaf in tree.where]
        if not places:
            return None
        with jax.enable_x64(True):
            return np.asarray(_array(tree.leaf(places[0])))

    # jax sorts a dict; a flat one still has its own order.
    is_flat = isinstance(params, Mapping) and set(params) == set(tree.where)
    order = tuple(params) if is_flat else ()
    at = {name: NAMES.places(name, "bias") for name in found}
    biases = {
        f"{name}.bias": tuple(tree.leaf(place).shape)
        for name, places in at.items()
        for place in places
        if place.leaf in tree.where
    }
    conv1d = _orientations(shapes, biases, None)
    what = "the params that were given as base"
    return BaseModel(shapes, read, what, read_bias, conv1d, order)


def _array(leaf: Any) -> jax.Array:
    """A leaf as jax's; torch's bfloat16 does not go by way of NumPy, which has none."""
    try:
        return jax.numpy.asarray(leaf)
    except TypeError:
        return jax.numpy.from_dlpack(leaf)
