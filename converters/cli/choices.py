"""The names that options accept, as help and completion show them without importing JAX.

The tables with these names are elsewhere; a test compares them.
"""

__all__ = ["LAYOUTS", "MAJORITY_SIGNS", "METHODS", "READ", "TASKS", "layouts"]

# jaxmix.layout.LAYOUTS
LAYOUTS = ("torch", "flax", "names")
# jaxmix.combining.METHODS
METHODS = (
    "linear",
    "svd",
    "cat",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_linear_svd",
    "dare_ties",
    "dare_ties_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
    "slerp",
    "breadcrumbs",
    "sce",
    "model_stock",
    "knots",
)
# jaxmix.combining.formulas.MajoritySign
MAJORITY_SIGNS = ("total", "frequency")
# The formats that jaxmix.load reads: jaxmix.converters.adapters.loading.FORMATS
READ = ("mix", "adapterhub", "kohya", "diffusers", "mlx", "qwix", "peft")
# jaxmix.converters.adapters.peft.about.TASKS
TASKS = (
    "CAUSAL_LM",
    "FEATURE_EXTRACTION",
    "QUESTION_ANS",
    "SEQ_2_SEQ_LM",
    "SEQ_CLS",
    "TOKEN_CLS",
)


def layouts() -> list[str]:
    """Returns the names of all layouts; those of model libraries take an import."""
    from jaxmix.placement.layout import libraries

    return [*LAYOUTS, *libraries()]
