"""The sites that a layout finds in a tree: the inverse of its rules."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product

from jaxmix.errors import LayoutError
from jaxmix.placement.layout import Layout, Place, Rule

__all__ = ["sites_of"]

# A group in a site's expression that matches numbers, such as (\d+) or ((?!8\.)\d+).
_NUMBER = re.compile(r"(\(\?!.*\))?(\\d[*+]?)(\[\d+\])?|\d+(\|\d+)*")
# All libraries' layouts together have some 3,000 rules, each of which is tried on each tree.
_CACHED = 8192
_GROUP = re.compile(r"\\(\d+)|\{\\(\d+)(?://|%)(\d+)\}")


def sites_of(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
    """Returns the sites whose weights a layout finds among leaves.

    A site that a rule spells in several ways, for instance with an optional ``model.``, is returned
    once, as Hugging Face's text models name it.

    Args:
        layout: The layout.
        shapes: The shape of each leaf, by its dotted name.

    Returns:
        The place of each site's weight, in the order of the rules. Each leaf, or index into one,
        occurs once, unless two sites share it.

    Example:
        >>> from jaxmix.layout import named
        >>> found = sites_of(named("tunix"), {"layers.0.attn.q_proj.w": (4, 2, 3)})
        >>> [(site, place.leaf) for site, place in found.items()]
        [('model.layers.0.self_attn.q_proj', 'layers.0.attn.q_proj.w')]
    """
    found: dict[str, Place] = {}
    for rule in layout.rules:
        if rule.part != "weight":
            continue
        for site in _sites(rule, shapes):
            place = rule.place(site)
            if place is not None and site not in found and _exists(place, shapes):
                found[site] = place
    return found


def _exists(place: Place, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the place's leaf exists and has the place's axes."""
    if place.leaf not in shapes:
        return False
    try:
        place.shape(shapes[place.leaf])
    except LayoutError:
        return False
    return True


def _sites(rule: Rule, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """The sites that a rule may match in a tree with these leaves."""
    parts = _parsed(rule.site)
    if parts is None:
        return
    groups = tuple(text for text, is_group in parts if is_group)
    # Groups in the leaf's name are matched; those in the index, or divided, are counted.
    pattern, named = _leaf_pattern(rule.leaf, groups)
    seen: set[str] = set()
    for leaf, shape in shapes.items():
        match = pattern.fullmatch(leaf)
        if match is None:
            continue
        counted = [n for n in range(1, len(groups) + 1) if n not in named]
        if not all(_NUMBER.fullmatch(groups[n - 1]) for n in counted):
            continue
        bounds = [_choices(rule, n, groups[n - 1], leaf, shape) for n in counted]
        values: dict[int, str] = {n: match[f"g{n}"] for n in named}
        for numbers in product(*bounds):
            values.update({n: str(number) for n, number in zip(counted, numbers, strict=True)})
            order = iter(range(1, len(groups) + 1))
            site = "".join(values[next(order)] if is_group else text for text, is_group in parts)
            if site not in seen:
                seen.add(site)
                yield site


def _choices(rule: Rule, number: int, group: str, leaf: str, shape: Sequence[int]) -> Sequence[int]:
    """The numbers that a group may match."""
    if re.fullmatch(r"\d+(\|\d+)*", group):
        return [int(choice) for choice in group.split("|")]
    return range(_bound(rule, number, leaf, shape))


def _bound(rule: Rule, group: int, leaf: str, shape: Sequence[int]) -> int:
    """An upper bound for numbers of layers or experts, by the index or a divided name."""
    bound = 1
    for axis, item in enumerate((rule.index or "").split(",")[: len(shape)]):
        for _, divisor in _counts(item, group):
            bound = max(bound, shape[axis] * divisor)
    for is_quotient, divisor in _counts(rule.leaf, group):
        largest = max((int(number) for number in re.findall(r"\d+", leaf)), default=0)
        bound = max(bound, (largest + 1) * divisor if is_quotient else bound * divisor)
    return bound


def _counts(text: str, group: int) -> Iterator[tuple[bool, int]]:
    """The uses of a group's number in a string: whether as a quotient, and the divisor."""
    for match in _GROUP.finditer(text):
        if int(match[1] or match[2]) == group:
            yield "//" in match[0], int(match[3] or 1)


@lru_cache(_CACHED)
def _leaf_pattern(template: str, groups: tuple[str, ...]) -> tuple[re.Pattern[str], frozenset[int]]:
    """An expression for the leaves of a rule, and the site's groups that it contains."""
    text, last, named = "", 0, set[int]()
    for match in _GROUP.finditer(template):
        text += re.escape(template[last : match.start()])
        last = match.end()
        number = int(match[1] or match[2])
        if not match[1] or number > len(groups):
            text += r"\d+"
        elif number in named:
            text += f"(?P=g{number})"
        else:
            named.add(number)
            text += f"(?P<g{number}>.+)"
    return re.compile(text + re.escape(template[last:])), frozenset(named)


@lru_cache(_CACHED)
def _parsed(site: str) -> tuple[tuple[str, bool], ...] | None:
    """A site's expression as literal strings and groups; None if it has anything else.

    Optional parts are omitted, but repeatable parts, such as ``model.`` above the layers, are kept
    once. Lookaheads are omitted, because the rule's own expression is matched in the end.
    """
    parts: list[tuple[str, bool]] = []
    at = 0
    while at < len(site):
        if site[at] == "(":
            end = _closing(site, at)
            if end is None:
                return None
            inner = site[at + 1 : end]
            at = end + 1
            quantifier = site[at] if at < len(site) and site[at] in "*?+" else ""
            at += len(quantifier)
            if inner.startswith(("?!", "?=", "?<")):
                continue
            if not inner.startswith("?:"):
                if quantifier:
                    return None
                parts.append((inner, True))
            elif quantifier != "?":
                literal = _literal(inner[2:].split("|")[0])
                if literal is None:
                    return None
                parts.append((literal, False))
        else:
            width = 2 if site[at] == "\\" else 1
            literal = _literal(site[at : at + width])
            if literal is None:
                return None
            parts.append((literal, False))
            at += width
    return tuple(parts)


def _literal(text: str) -> str | None:
    """The only string that an expression matches; None if it matches several."""
    if re.search(r"\\[a-zA-Z\d]|(?<!\\)[.*+?()\[\]{}|^$]", text):
        return None
    return re.sub(r"\\(.)", r"\1", text)


def _closing(text: str, at: int) -> int | None:
    """The position where the parenthesis that opens at a position closes."""
    depth = 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] in "()":
            depth += 1 if text[at] == "(" else -1
            if depth == 0:
                return at
        at += 1
    return None
