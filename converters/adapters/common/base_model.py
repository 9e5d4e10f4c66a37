"""The model that an adapter was trained on, as the readers of adapters need it.

Some files do not describe their adapter completely: they have module names without dots, or leave
out factors that are computed from the base's weights. Their readers look these up here.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxmix.errors import CheckpointError, LayoutError, option
from jaxmix.placement.assembly import assembled, assembled_shape
from jaxmix.placement.canonical import Holding, Modules
from jaxmix.placement.layout import NAMES
from jaxmix.placement.orientation import OutAxes
from jaxmix.placement.spelling import Spellings
from jaxmix.placement.tree import Tree
from jaxmix.untrusted.patterns import is_match

__all__ = ["BaseModel", "base_model", "orientations"]


_OTHER_MODEL = "Was the adapter trained on another model?"


@dataclass(frozen=True)
class BaseModel:
    """The weights of a model by the PyTorch names of its modules, each read when it is needed.

    A leaf that is not a module's weight, such as the stacked weights of experts, has its own name.

    Args:
        shapes: ``{module: shape of its weight}``, in PyTorch's axes; None if unknown.
        read_weight: Maps a module's name to its weight, in PyTorch's axes.
        description: The model, for messages.
        read_bias: Maps a module's name to its bias, None if it has none.
        conv1d: Maps a module's name to whether its weight is stored as (in, out), like that of
            transformers' ``Conv1D``; None if unknown.
        order: The names of all leaves in the order of the caller's dict, as PyTorch's
            ``state_dict`` has them in the model's own order. Empty where that order is lost: a
            folder's files and jax's trees are sorted.
        in_memory: The modules by their names in memory, if these differ.
    """

    shapes: Mapping[str, tuple[int, ...] | None]
    read_weight: Callable[[str], np.ndarray]
    description: str
    read_bias: Callable[[str], np.ndarray | None] = lambda name: None
    conv1d: Callable[[str], bool | None] = lambda name: None
    order: tuple[str, ...] = ()
    in_memory: Modules | None = None

    @cached_property
    def _spellings(self) -> Spellings:
        return Spellings(self.shapes)

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules that have a weight."""
        return tuple(self.shapes)

    def shape(self, module: str) -> tuple[int, ...]:
        """The shape of a module's weight, in PyTorch's axes."""
        if pieces := self._pieces(module):
            return assembled_shape(pieces, self.shapes)
        shape = self.shapes[self._full_name(module)]
        return self.weight(module).shape if shape is None else shape

    def weight(self, module: str) -> np.ndarray:
        """A module's weight, in PyTorch's axes.

        Raises:
            CheckpointError: If there is no such module, or its name is ambiguous.
        """
        if pieces := self._pieces(module):
            return assembled(pieces, self.read_weight)
        return self.read_weight(self._full_name(module))

    def bias(self, module: str) -> np.ndarray:
        """A module's bias.

        Raises:
            CheckpointError: If there is no such module, or it has no bias.
        """
        bias = self.read_bias(self._full_name(module))
        if bias is None:
            raise CheckpointError(
                f"the adapter needs the bias of {module}, but it has none in {self.description}. "
                f"{_OTHER_MODEL}"
            )
        return bias

    def is_conv1d(self, module: str) -> bool | None:
        """Whether a module's weight is stored as (in, out); None if unknown."""
        return self.conv1d(self._full_name(module))

    def has(self, module: str) -> bool:
        """Whether exactly one module has this name, or the name with another prefix."""
        return len(self._candidates(module)) == 1 or bool(self._pieces(module))

    def _candidates(self, module: str) -> list[str]:
        """The base's names for a module: either name may have a further prefix."""
        if module in self.shapes:
            return [module]
        if module.removesuffix(".weight") in self.shapes:
            return [module.removesuffix(".weight")]
        if len(respelled := self._spellings.of(module)) == 1:
            return list(respelled)
        if self.in_memory and (stored := self.in_memory.in_memory(module)):
            return [name for name in stored if name in self.shapes]
        return [
            name
            for name in self.shapes
            if name.endswith(f".{module}") or module.endswith(f".{name}")
        ]

    def _pieces(self, module: str) -> tuple[Holding, ...]:
        """The leaves that hold a weight in memory; nothing if it is a module of the base itself."""
        if self.in_memory is None or self._candidates(module):
            return ()
        return self.in_memory.pieces(f"{module}.weight") or self.in_memory.pieces(module)

    def _full_name(self, module: str) -> str:
        """The base's own name for a module."""
        names = self._candidates(module)
        if len(names) == 1:
            return names[0]
        if names:
            problem = f"several modules of {self.description} match: {', '.join(names[:3])}"
        else:
            near = get_close_matches(module, self.shapes, n=3, cutoff=0.4) or [*self.shapes][:3]
            also = tuple(self.in_memory.tried(module)) if self.in_memory else ()
            tried = f" (nor {', '.join(also)})" if also else ""
            problem = (
                f"{self.description} has no such module{tried}; the nearest are {', '.join(near)}"
            )
        raise CheckpointError(
            f"the adapter needs the weight of {module}, but {problem}. {_OTHER_MODEL}"
        )


def base_model(base: Any, variant: str | None = None) -> BaseModel:
    """Converts the ``base=`` of `jaxmix.load` to a `BaseModel`.

    Args:
        base: A folder of transformers or diffusers, whose pipelines have the component in all names
            (``unet.conv_in``); a params tree whose leaves have the names of PyTorch's modules
            (those that `jaxmix.compose` finds without a layout), which is a flat dict in the
            model's own order where a reader needs the order; or a list of the modules' names,
            which is enough where no weights are needed.
        variant: Which of several variants of a folder's weights to read, such as ``"fp16"``.

    Returns:
        The model. Of a folder only headers are read.

    Raises:
        CheckpointError: If it is none of these, or a variant is given and it is no folder.

    Example:
        >>> base_model({"proj": {"kernel": np.ones((3, 2))}}).shape("proj")
        (2, 3)
        >>> base_model(["proj"]).modules
        ('proj',)

    Source: docs/design.md, Terms: site, params.
    """
    if isinstance(base, str | os.PathLike):
        from jaxmix.converters.adapters.common.base_folder import folder_model  # it imports this

        return folder_model(base, variant)
    if variant is not None:
        raise CheckpointError(
            f"{option('variant', variant)} chooses among the files of a folder, which is not given "
            f"as {option('base', ...)}. Leave it out."
        )
    if isinstance(base, BaseModel):
        return base
    is_names = isinstance(base, list | tuple | set | frozenset) and base
    if is_names and all(isinstance(name, str) for name in base):
        return _of_names(base)
    return _of_params(base)


def orientations(
    shapes: Mapping[str, tuple[int, ...]],
    biases: Mapping[str, tuple[int, ...]],
    pattern: str | None,
) -> Callable[[str], bool | None]:
    """Determines which weights are stored as (in, out), from a pattern or from all shapes."""
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
    """Returns a model of which only the names are known."""
    description = "a list of module names"

    def read(name: str) -> np.ndarray:
        raise CheckpointError(
            f"the adapter needs the weight of {name}, but base is {description}. Pass the "
            "params, or the base's folder."
        )

    return BaseModel(dict.fromkeys(names), read, description)


# The names of a module's weight in `layout.NAMES`, including those that PyTorch does not use.
_ENDS = (".weight", ".kernel", ".embedding", ".scale")


def _no_base(value: Any) -> CheckpointError:
    """Returns the error for a value that is not a model."""
    return CheckpointError(
        f"base is a {type(value).__name__} without weights that have PyTorch's names, expected "
        "params, a Hugging Face folder, or a list of module names."
    )


def _of_params(params: Any) -> BaseModel:
    """Returns the model in a params tree."""
    try:
        tree = Tree.of(params)
    except LayoutError as error:
        raise _no_base(params) from error
    place_of = {}
    for leaf in tree.positions:
        end = next((end for end in _ENDS if leaf.endswith(end)), "")
        module = leaf.removesuffix(end).removeprefix("params.")
        places = [place for place in NAMES.places(module, "weight") if place.leaf == leaf]
        if places and not leaf.endswith(".bias") and hasattr(tree.leaf(places[0]), "shape"):
            place_of[module] = places[0]
    if not place_of:
        raise _no_base(params)
    shapes = {name: place.shape(tree.leaf(place).shape) for name, place in place_of.items()}

    def read(name: str) -> np.ndarray:
        leaf = tree.leaf(place_of[name])
        with jax.enable_x64(True):  # keeps float64
            return np.asarray(place_of[name].get(_array(leaf)))

    def read_bias(name: str) -> np.ndarray | None:
        places = [place for place in NAMES.places(name, "bias") if place.leaf in tree.positions]
        if not places:
            return None
        with jax.enable_x64(True):
            return np.asarray(_array(tree.leaf(places[0])))

    # jax sorts a dict, but a flat one still has its own order.
    is_flat = isinstance(params, Mapping) and set(params) == set(tree.positions)
    order = tuple(params) if is_flat else ()
    at = {name: NAMES.places(name, "bias") for name in place_of}
    biases = {
        f"{name}.bias": tuple(tree.leaf(place).shape)
        for name, places in at.items()
        for place in places
        if place.leaf in tree.positions
    }
    conv1d = orientations(shapes, biases, None)
    description = "the params given as base"
    return BaseModel(shapes, read, description, read_bias, conv1d, order)


def _array(leaf: Any) -> jax.Array:
    """Converts a leaf to a jax array; torch's bfloat16 can't be converted through NumPy."""
    try:
        return jax.numpy.asarray(leaf)
    except TypeError:
        return jax.numpy.from_dlpack(leaf)
