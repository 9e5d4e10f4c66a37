r"""EasyDeL: NNX models whose leaves have Hugging Face's names, with kernels (in, out).

Its norms also have a ``kernel``, with one axis: without this layout such a site is an error.
Source: ``easydel/modules/*/modeling_*.py``; easydel 0.3.0.
"""

from jaxmix.converters.layouts.naming import with_prefixes
from jaxmix.placement.layout import KERNEL, Layout, Rule

__all__ = ["TABLES"]

_NORM = r".*norm[^.]*"
_RULES = (
    Rule(rf"({_NORM})", r"\1.kernel"),
    Rule(rf"(?!{_NORM}$)(.+)", r"\1.kernel", KERNEL),
    Rule(r"(.+)", r"\1.embedding"),
    Rule(r"(.+)", r"\1.bias", part="bias"),
)

TABLES = (Layout("easydel", with_prefixes(_RULES, "", "params."), by_name=True),)
