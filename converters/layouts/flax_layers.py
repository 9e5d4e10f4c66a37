"""Rules for the layers of Flax models of images and video, whose names are those of diffusers.

A layer is a linear layer or a convolution with a ``kernel``, or a norm with a ``scale``; both may
have a ``bias``. A site's name may start with the name of its component of a pipeline.
"""

from collections.abc import Iterator, Sequence

from jaxmix.converters.layouts.naming import with_prefixes
from jaxmix.placement.layout import KERNEL, Rule

__all__ = ["layer", "of_component", "parts_of"]


def layer(site: str, leaf: str, index: str | None = None) -> Iterator[Rule]:
    """Yields the rules for a layer.

    Args:
        site: The site's expression.
        leaf: The name of its leaves, without the last part.
        index: The index of a stack of layers; None if the layer has its own leaves.
    """
    yield Rule(site, f"{leaf}.kernel", KERNEL, index)
    yield Rule(site, f"{leaf}.scale", None, index)
    yield Rule(site, f"{leaf}.bias", None, index, "bias")


def parts_of(
    sites: Sequence[tuple[str, str]], leaf: str, index: str | None = None
) -> Iterator[Rule]:
    """Yields the rules for linear layers that share a kernel: each has some of its outputs.

    Args:
        sites: The expression of each site, and its part of the outputs, such as ``1/3``.
        leaf: The name of the shared leaves, without the last part.
        index: The index of a stack of layers; None if the layer has its own leaves.
    """
    stack = "" if index is None else f"{index}, "
    for site, part in sites:
        yield Rule(site, f"{leaf}.kernel", KERNEL, f"{stack}:, {part}")
        yield Rule(site, f"{leaf}.bias", None, f"{stack}{part}", "bias")


def of_component(rules: Sequence[Rule], *names: str) -> tuple[Rule, ...]:
    """Returns rules for one component of a pipeline, such as ``unet``.

    Args:
        rules: The rules for its sites and leaves.
        names: The component's names, which may precede sites. The first may precede leaves.

    Returns:
        Rules for names with and without the component, and leaves with and without ``params``.
    """
    prefix = rf"(?:(?:{'|'.join(names)})\.)?"
    named = [
        Rule(prefix + r.site, r.leaf, r.axes, r.index, r.part, r.sizes, r.scale) for r in rules
    ]
    return with_prefixes(named, "", "params.", f"{names[0]}.", f"{names[0]}.params.")
