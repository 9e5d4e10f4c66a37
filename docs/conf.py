"""Settings of the documentation site: `make docs` builds it with Sphinx into site/."""

import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.inspect import stringify_signature
from sphinx.util.nodes import make_refnode

_PROJECT = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())[
    "project"
]

project = "jaxmix"
author = "the jaxmix authors"
copyright = author
release = version = _PROJECT["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_static"]

# In docstrings `name` is a link to that object, as in JAX's and optax's.
default_role = "py:obj"
nitpicky = True
# Links to public names must work. Arguments, types in signatures and other libraries need not.
nitpick_ignore_regex = [("py:(?!obj).*", ".*"), ("py:obj", r"(?!jaxmix\.).*")]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_admonition_for_examples = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 72
add_module_names = False
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_title = f"jaxmix {release}"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}

_LINKED = ("function", "class", "exception", "data")


def _by_last_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Links `compose` and `jaxmix.adapter.Adapter` to the public name of the same object."""
    target = node.get("reftarget", "")
    path, _, last = target.rpartition(".")
    if node.get("refdomain") != "py" or path.partition(".")[0] not in ("", "jaxmix"):
        return None
    found = {
        name: entry
        for name, entry in env.domains.python_domain.objects.items()
        if name.rpartition(".")[2] == last and entry.objtype in _LINKED
    }
    if len(found) != 1:
        return None
    [(name, entry)] = found.items()
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)


# Types are shown by their last name: `Mapping`, not `collections.abc.Mapping`.
_PATH = re.compile(r"~?\b(?:[A-Za-z_]\w*\.)+(?=[A-Z])")


def _readable(
    app: Sphinx,
    what: str,
    name: str,
    found: Any,
    options: Any,
    signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """Shortens the types of a signature, and writes a default that is made anew as `...`."""
    if what == "class" and signature and signature.startswith("(*args"):  # an nnx.Module
        made = inspect.signature(found.__init__)
        own = made.replace(parameters=list(made.parameters.values())[1:])
        signature = stringify_signature(own, unqualified_typehints=True)
    short = (
        text and _PATH.sub("", text).replace("<factory>", "...") for text in (signature, returned)
    )
    return next(short), next(short)


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers what is changed in signatures and links."""
    app.connect("missing-reference", _by_last_name)
    app.connect("autodoc-process-signature", _readable)
    return {"parallel_read_safe": True}
