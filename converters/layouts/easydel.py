r"""EasyDeL: NNX models whose leaves keep Hugging Face's names, kernels (in, out).

Its norms have a ``kernel`` too, of one axis: without this table such a site is an error.
Source: ``easydel/modules/*/modeling_*.py``; easydel 0.3.0.
"""

from jaxmix.converters.layouts.naming import below
from jaxmix.placement.layout import KERNEL, Layout, Rule

__all__ = ["TABLES"]

_NORM = r".*norm[^.]*"
_RULES = (
    Rule(rf"({_NORM})", r"\1.kernel"),
    Rule(rf"(?!{_NORM}$)(.+)", r"\1.kernel", KERNEL),
    Rule(r"(.+)", r"\1.embedding"),
    Rule(r"(.+)", r"\1.bias", part="bias"),
)

TABLES = (Layout("easydel", below(_RULES, "", "params."), by_name=True),)
