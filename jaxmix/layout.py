"""Layouts: where a site's leaves lie in a params tree, and how their axes lie there.

A site is a PyTorch module name. A leaf's name is its path in the tree, joined with dots, so that
``{"model": {"norm": {"scale": …}}}``, ``{"model.norm.scale": …}`` and ``module.model.norm.scale``
are one name. A layout is a table of rules from site to leaf name; what a rule says of axes leads to
PyTorch's own: a linear weight (out, in), a convolution (out, in, *k), an embedding (V, D).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import einops
import jax
import numpy as np

from jaxmix.errors import LayoutError

__all__ = [
    "FLAX",
    "KERNEL",
    "LAYOUTS",
    "NAMES",
    "TORCH",
    "Layout",
    "Part",
    "Place",
    "Rule",
    "named",
]

Part = Literal["weight", "bias"]


@dataclass(frozen=True)
class Rule:
    r"""One line of a layout: the sites that it is for, and where their leaf lies.

    ``leaf[index]``, its axes moved as ``axes`` says, is PyTorch's tensor.

    Args:
        site: a regular expression for the whole PyTorch module name.
        leaf: the leaf's name, with ``\1`` … for what the expression's groups matched.
        axes: an einops pattern from the leaf's axes to PyTorch's, such as ``"d n h -> (n h) d"``;
            None where the leaf lies as PyTorch stores it.
        index: a basic NumPy index where the leaf holds several sites, such as ``"1"``, ``":, \1"``
            or ``"0:64"``; groups as above; None for the whole leaf.
        part: whether the leaf is the site's weight or its bias.

    Raises:
        LayoutError: if ``site`` is no regular expression, or something else is no text.

    Example:
        >>> rule = Rule(r"layers\.(\d+)\.attn\.k", "decoder.kv", "d n h -> (n h) d", r":, \1, 0")
        >>> rule.place("layers.3.attn.k")
        Place(leaf='decoder.kv', axes='d n h -> (n h) d', index=':, 3, 0')

    Source: the tables of model libraries in DESIGN.md's field notes; https://einops.rocks.
    """

    site: str
    leaf: str
    axes: str | None = None
    index: str | None = None
    part: Part = "weight"

    def __post_init__(self) -> None:
        texts = (self.site, self.leaf, self.axes or "", self.index or "")
        if self.part not in get_args(Part) or not all(isinstance(text, str) for text in texts):
            raise LayoutError(
                f"{self!r} is no rule, expected texts, and 'weight' or 'bias' as its part. An "
                "index is a text too, such as '1'."
            )
        try:
            re.compile(self.site)
        except re.error as error:
            raise LayoutError(
                f"the rule's site {self.site!r} is no regular expression: {error}. Write the "
                r"PyTorch module name with its dots escaped, such as r'layers\.(\d+)\.q_proj'."
            ) from error

    def place(self, site: str) -> "Place | None":
        """Where the site's leaf would lie, or None if the rule is not for this site."""
        found = re.fullmatch(self.site, site)
        if found is None:
            return None
        try:
            index = None if self.index is None else found.expand(self.index)
            return Place(found.expand(self.leaf), self.axes, index)
        except (re.error, IndexError) as error:
            raise LayoutError(
                f"the rule for {self.site!r} names a group that the expression does not have, in "
                f"{self.leaf!r} or {self.index!r}: {error}."
            ) from error


@dataclass(frozen=True)
class Place:
    """Where one tensor of a site lies: ``leaf[index]``, its axes moved, is PyTorch's.

    Args:
        leaf: the leaf's dotted name.
        axes: an einops pattern from the leaf's axes to PyTorch's; None for none.
        index: a basic NumPy index into the leaf, as text; None for the whole leaf.

    Raises:
        LayoutError: by `shape`, if the leaf does not have these axes, or the index is none.

    Example:
        >>> Place("attn.kernel", "d n h -> (n h) d").shape((6, 2, 4))
        (8, 6)

    Source: https://einops.rocks; DESIGN.md, words.
    """

    leaf: str
    axes: str | None = None
    index: str | None = None

    def get(self, leaf: jax.Array) -> jax.Array:
        """PyTorch's tensor, out of the leaf."""
        part = leaf if self.index is None else leaf[_index(self.index)]
        return part if self.axes is None else einops.rearrange(part, self.axes)

    def put(self, leaf: jax.Array, tensor: jax.Array) -> jax.Array:
        """The leaf with PyTorch's tensor in its place."""
        part = leaf if self.index is None else leaf[_index(self.index)]
        if self.axes is not None:
            here, there = (side.strip() for side in self.axes.split("->"))
            sizes = einops.parse_shape(part, here) if "(" in there else {}
            tensor = einops.rearrange(tensor, f"{there} -> {here}", **sizes)
        tensor = tensor.reshape(part.shape)
        return tensor if self.index is None else leaf.at[_index(self.index)].set(tensor)

    def ranges(self, leaf_shape: tuple[int, ...]) -> tuple[range, ...]:
        """The positions along each of the leaf's axes that the index picks."""
        index = () if self.index is None else _index(self.index)
        index = (*index, *[slice(None)] * (len(leaf_shape) - len(index)))
        return tuple(
            range(size)[at] if isinstance(at, slice) else range(size)[at : at + 1 or None]
            for size, at in zip(leaf_shape, index, strict=True)
        )

    def shape(self, leaf_shape: tuple[int, ...]) -> tuple[int, ...]:
        """PyTorch's shape of the tensor, of a leaf of this shape.

        Raises:
            LayoutError: if the leaf does not have the axes that the rule says.
        """
        return _shape(self, leaf_shape)


@lru_cache(maxsize=4096)
def _shape(place: Place, leaf_shape: tuple[int, ...]) -> tuple[int, ...]:
    if place.axes is None and place.index is None:
        return leaf_shape
    index = () if place.index is None else _index(place.index)
    try:
        # JAX clamps an index that lies outside; NumPy refuses it.
        np.broadcast_to(np.zeros((), np.float32), leaf_shape)[index]
        leaf = jax.ShapeDtypeStruct(leaf_shape, np.float32)
        tensor = jax.eval_shape(place.get, leaf)
        jax.eval_shape(place.put, leaf, tensor)
        return tensor.shape
    except (einops.EinopsError, IndexError, RuntimeError, TypeError, ValueError) as error:
        at = "" if place.index is None else f"[{place.index}]"
        what = "index" if place.axes is None else f"axes {place.axes!r}"
        why = str(error).splitlines()[-1].strip()
        raise LayoutError(
            f"{place.leaf}{at} of shape {leaf_shape} does not have the {what} that the layout's "
            f"rule says ({why}). Mend the rule."
        ) from error


@lru_cache(maxsize=4096)
def _index(text: str) -> tuple[int | slice, ...]:
    """A basic index, read from its text."""
    items: list[int | slice] = []
    for item in text.split(","):
        parts = [part.strip() for part in item.split(":")]
        try:
            numbers = [int(part) if part else None for part in parts]
        except ValueError:
            numbers = []
        if len(numbers) == 1 and numbers[0] is not None:
            items.append(numbers[0])
        elif 1 < len(numbers) <= 3:
            items.append(slice(*numbers))
        else:
            raise LayoutError(
                f"the index {text!r} of a layout's rule is no basic index, expected integers and "
                "slices with commas between them, such as ':, 3' or '0:64'."
            )
    return tuple(items)


@dataclass(frozen=True)
class Layout:
    r"""Where the sites of a model lie in its params: a table of rules.

    Every rule that matches a site names a leaf; the one that the tree has is it. So a table may
    hold several spellings.

    Args:
        name: what to call it in messages.
        rules: the table, in any order.

    Raises:
        LayoutError: if a rule is no `Rule`; by `compose`, where a site finds no leaf, or more
            than one.

    Example:
        >>> linen = Layout("mine", (Rule(r"h\.(\d+)\.fc", r"block_\1.w", "i o -> o i"),))
        >>> linen.places("h.2.fc", "weight")
        [Place(leaf='block_2.w', axes='i o -> o i', index=None)]

    Source: DESIGN.md, rooms of the house.
    """

    name: str
    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        rules = tuple(self.rules) if isinstance(self.rules, Iterable) else (self.rules,)
        if not all(isinstance(rule, Rule) for rule in rules) or not isinstance(
            self.rules, Iterable
        ):
            raise LayoutError(
                f"the layout {self.name!r} has {self.rules!r}, expected a tuple of jaxmix.Rule."
            )
        object.__setattr__(self, "rules", rules)

    def places(self, site: str, part: Part) -> list[Place]:
        """Where the site's weight or bias may lie, in the order of the rules."""
        return list(_places(self.rules, site, part))


# Asked for at every compose; and Python parses a rule's template anew at each expansion.
@lru_cache(maxsize=1 << 16)
def _places(rules: tuple[Rule, ...], site: str, part: Part) -> tuple[Place, ...]:
    places = (rule.place(site) for rule in rules if rule.part == part)
    return tuple(place for place in places if place is not None)


def _named(weights: Mapping[str, str | None]) -> tuple[Rule, ...]:
    """Rules for leaves that are named after their site, also below Linen's ``params``."""
    rules: list[Rule] = []
    for above in ("", "params."):
        for name, axes in weights.items():
            rules.append(Rule(r"(.+)", rf"{above}\1.{name}" if name else rf"{above}\1", axes))
        rules.append(Rule(r"(.+)", rf"{above}\1.bias", part="bias"))
    return tuple(rules)


# A Flax kernel, HWIO if it is a convolution's.
KERNEL = "... i o -> o i ..."

# A leaf that is no module's, such as a class token, is saved by PEFT under its own name: "".
_TORCH: dict[str, str | None] = {"weight": None, "": None}
_FLAX: dict[str, str | None] = {
    "kernel": KERNEL,
    "embedding": None,
    "scale": None,
    "": None,
}

TORCH = Layout("torch", _named(_TORCH))
FLAX = Layout("flax", _named(_FLAX))
NAMES = Layout("names", _named({**_TORCH, **_FLAX}))
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (TORCH, FLAX, NAMES)}


def named(layout: Layout | str | None) -> Layout:
    """The layout that is meant.

    Args:
        layout: a layout, the name of one, or None for by the leaves' names.

    Returns:
        The layout.

    Raises:
        LayoutError: if there is none of that name.

    Example:
        >>> named("torch").places("proj", "bias")[0].leaf
        'proj.bias'

    Source: DESIGN.md, words: layout.
    """
    if layout is None or isinstance(layout, Layout):
        return layout or NAMES
    if isinstance(layout, str) and layout in LAYOUTS:
        return LAYOUTS[layout]
    raise LayoutError(
        f"there is no layout {layout!r}, expected None, one of {', '.join(map(repr, LAYOUTS))}, or "
        "a jaxmix.Layout with rules of your own."
    )
