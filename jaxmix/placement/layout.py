"""Layouts: where the leaves of a site are in a params tree, and the order of their axes.

A site is a PyTorch module name. A leaf's name is its path in the tree, joined with dots:
``{"model": {"norm": {"scale": …}}}``, ``{"model.norm.scale": …}`` and ``module.model.norm.scale``
have the same name. A layout is a table of rules from site to leaf name. A rule's pattern of axes
gives PyTorch's order: a linear weight (out, in), a convolution (out, in, *k), an embedding
(V, D).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from typing import get_args

from jaxmix.errors import LayoutError
from jaxmix.placement.index import divided
from jaxmix.placement.place import Part, Place, Scale, are_sizes, is_scale
from jaxmix.registry import LIBRARIES
from jaxmix.untrusted.patterns import find, is_match

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
    "Scale",
    "libraries",
    "named",
]


@dataclass(frozen=True)
class Rule:
    r"""One row of a layout: the sites that it matches, and where their leaf is.

    ``leaf[index] / scale``, with its axes rearranged by ``axes``, is PyTorch's tensor.

    Args:
        site: A regular expression for the whole PyTorch module name.
        leaf: The leaf's name, with ``\1`` … for the expression's groups, and quotients and
            remainders of integer groups for alternating layers: ``{\1//2}``, ``{\1%2}``.
        axes: An einops pattern from the leaf's axes to PyTorch's, such as ``"d n h -> (n h) d"``;
            None if the leaf has PyTorch's axes.
        index: A basic NumPy index if the leaf holds several sites, such as ``"1"``, ``":, \1"``
            or ``"0:64"``, with groups as above; None for the whole leaf. ``"1/3"`` is the second
            of three equal parts of an axis, ``"3:7/7"`` the last four of seven.
        part: Whether the leaf is the site's weight or its bias.
        sizes: Sizes of axes that do not follow from the leaf's shape: with ``(("two", 2),)`` the
            pattern ``"d n (h two) -> (n two h) d"`` undoes an interleaved rotary embedding.
        scale: The factor by which the leaf is larger than PyTorch's tensor: a number, or sizes of
            the pattern's axes, each to a power, such as ``(("h", -0.5),)``.

    Raises:
        LayoutError: If ``site`` is not a regular expression, or another argument is invalid.

    Example:
        >>> rule = Rule(r"layers\.(\d+)\.attn\.k", "decoder.kv", "d n h -> (n h) d", r":, \1, 0")
        >>> place = rule.place("layers.3.attn.k")
        >>> place.leaf, place.index
        ('decoder.kv', ':, 3, 0')
        >>> Rule(r"h\.(\d+)\.q", r"block_{\1%2}.q", index=r"{\1//2}").place("h.5.q").index
        '2'

    Source: https://einops.rocks.
    """

    site: str
    leaf: str
    axes: str | None = None
    index: str | None = None
    part: Part = "weight"
    sizes: tuple[tuple[str, int], ...] = ()
    scale: Scale = 1.0

    def __post_init__(self) -> None:
        texts = (self.site, self.leaf, self.axes or "", self.index or "")
        if self.part not in get_args(Part) or not all(isinstance(text, str) for text in texts):
            raise LayoutError(
                f"{self!r} is not a rule, expected strings, and 'weight' or 'bias' as its part. "
                "An index is a string too, such as '1'."
            )
        if not are_sizes(self.sizes) or not is_scale(self.scale):
            raise LayoutError(
                f"{self!r} is not a rule, expected sizes such as (('two', 2),), and as its scale a "
                "positive number, or sizes of axes to powers such as (('h', -0.5),)."
            )
        _check_pattern(self.site, "the rule's site")

    def place(self, site: str) -> Place | None:
        """Returns where the site's leaf would be; None if the rule does not match the site."""
        found = _match(self.site, site)
        if found is None:
            return None
        try:
            index = None if self.index is None else divided(found.expand(self.index))
            leaf = divided(found.expand(self.leaf))
            return Place(leaf, self.axes, index, self.sizes, self.scale)
        except (re.error, IndexError) as error:
            raise LayoutError(
                f"the rule for {self.site!r} names a group that the expression does not have, in "
                f"{self.leaf!r} or {self.index!r}: {error}."
            ) from error


# Layouts repeat a site's expression, for instance for each prefix of its leaf.
@lru_cache(maxsize=4096)
def _match(pattern: str, site: str) -> re.Match[str] | None:
    """The match of a rule's expression with a site's whole name."""
    return find(pattern, site, full=True)


def _check_pattern(pattern: str, subject: str) -> None:
    """Refuses invalid regular expressions."""
    try:
        is_match(pattern, "")
    except (re.error, TypeError) as error:
        raise LayoutError(
            f"{subject} {pattern!r} is not a regular expression: {error}. Write the PyTorch module "
            r"name with its dots escaped, such as layers\.(\d+)\.q_proj."
        ) from error


@dataclass(frozen=True)
class Layout:
    r"""Where the sites of a model are in its params: a table of rules.

    Each rule that matches a site names a leaf; the leaf that is in the tree is used. A table may
    therefore list several spellings.

    Args:
        name: Its name in messages.
        rules: The table, in any order. If empty, leaves are named after their sites.
        by_name: Whether leaves are named after their sites. The tree's names then show which
            modules it has, and what is tied.
        conv1d: A regular expression for the sites whose weight PyTorch stores as (in, out), as
            transformers' ``Conv1D`` does; all others are (out, in), as in ``torch.nn.Linear``.
            ``""`` matches no site. If absent, the shapes of weights and biases decide.
        places_of: The places of single sites, ``{site: {"weight": place}}``, used instead of rules.

    Raises:
        LayoutError: If a rule is not a `Rule` or ``conv1d`` not a regular expression; by `compose`,
            if a site matches no leaf, or more than one.

    Example:
        >>> linen = Layout("mine", (Rule(r"h\.(\d+)\.fc", r"block_\1.w", "i o -> o i"),))
        >>> linen.places("h.2.fc", "weight")
        [Place(leaf='block_2.w', axes='i o -> o i', index=None, sizes=(), scale=1.0)]
        >>> gpt2 = Layout("gpt2", conv1d=r".*\.c_(attn|fc|proj)")
        >>> gpt2.is_conv1d("h.0.attn.c_proj"), gpt2.is_conv1d("lm_head")
        (True, False)

    Source: docs/layouts.md.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    by_name: bool = False
    conv1d: str | None = None
    places_of: Mapping[str, Mapping[Part, Place]] = field(default_factory=dict)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # Layouts have many rules, and are hashed at every compose.
        return hash((self.name, self.rules, self.conv1d))

    def __post_init__(self) -> None:
        rules = tuple(self.rules) if isinstance(self.rules, Iterable) else (self.rules,)
        if not all(isinstance(rule, Rule) for rule in rules) or not isinstance(
            self.rules, Iterable
        ):
            raise LayoutError(
                f"the layout {self.name!r} has {self.rules!r}, expected a tuple of jaxmix.Rule."
            )
        if not rules:
            object.__setattr__(self, "by_name", True)
            rules = NAMES.rules
        object.__setattr__(self, "rules", rules)
        if self.conv1d is not None:
            _check_pattern(self.conv1d, f"the layout {self.name!r}: conv1d")

    def is_conv1d(self, site: str) -> bool | None:
        """Returns whether PyTorch stores the site's weight as (in, out); None if not stated."""
        return None if self.conv1d is None else is_match(self.conv1d, site, full=True)

    def places(self, site: str, part: Part) -> list[Place]:
        """Returns where the site's weight or bias may be, in the order of the rules."""
        if site in self.places_of:
            return [place for key, place in self.places_of[site].items() if key == part]
        return list(_places(self, site, part))


# Called at every compose, and Python parses a rule's template again at each expansion.
@lru_cache(maxsize=1 << 16)
def _places(layout: Layout, site: str, part: Part) -> tuple[Place, ...]:
    places = (rule.place(site) for rule in layout.rules if rule.part == part)
    return tuple(place for place in places if place is not None)


def _named(weights: Mapping[str, str | None]) -> tuple[Rule, ...]:
    """Rules for leaves named after their site, also below Linen's ``params``."""
    rules: list[Rule] = []
    for above in ("", "params."):
        for name, axes in weights.items():
            rules.append(Rule(r"(.+)", rf"{above}\1.{name}" if name else rf"{above}\1", axes))
        rules.append(Rule(r"(.+)", rf"{above}\1.bias", part="bias"))
    return tuple(rules)


# A Flax kernel, HWIO for convolutions.
KERNEL = "... i o -> o i ..."

# PEFT saves a leaf outside of any module, such as a class token, under its own name: "".
_TORCH: dict[str, str | None] = {"weight": None, "": None}
_FLAX: dict[str, str | None] = {
    "kernel": KERNEL,
    "embedding": None,
    "scale": None,
    "": None,
}

TORCH = Layout("torch", _named(_TORCH), by_name=True)
FLAX = Layout("flax", _named(_FLAX), by_name=True)
NAMES = Layout("names", _named({**_TORCH, **_FLAX}), by_name=True)
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (TORCH, FLAX, NAMES)}


def libraries() -> Mapping[str, Layout]:
    """Returns the layouts of the model libraries by name.

    Returns:
        ``{name: layout}``.

    Example:
        >>> [name for name in libraries() if name.startswith("maxtext_l")]
        ['maxtext_llama']

    Source: ``jaxmix/converters/layouts``, a table for each library.
    """
    return _libraries(tuple(LIBRARIES))


@cache
def _libraries(registered: tuple[Callable[[], Mapping[str, Layout]], ...]) -> Mapping[str, Layout]:
    """The layouts of all registered tables."""
    return {name: layout for tables in registered for name, layout in tables().items()}


def named(layout: Layout | str | None) -> Layout:
    """Returns a layout by its name.

    Args:
        layout: A layout, the name of one, or None for layouts by the leaves' names.

    Returns:
        The layout.

    Raises:
        LayoutError: If no layout has this name.

    Example:
        >>> named("torch").places("proj", "bias")[0].leaf
        'proj.bias'
        >>> named("maxtext_llama").places("lm_head", "weight")[1].leaf
        'params.decoder.logits_dense.kernel'

    Source: docs/layouts.md.
    """
    if layout is None or isinstance(layout, Layout):
        return layout or NAMES
    if isinstance(layout, str) and layout in LAYOUTS:
        return LAYOUTS[layout]
    known = {**LAYOUTS, **libraries()}
    if isinstance(layout, str) and layout in known:
        return known[layout]
    raise LayoutError(
        f"there is no layout {layout!r}, expected None, one of {', '.join(map(repr, known))}, or a "
        "jaxmix.Layout with rules of your own."
    )
