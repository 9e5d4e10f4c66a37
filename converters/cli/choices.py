"""The names that options accept, as help and completion show them without importing JAX.

The tables with these names are elsewhere; a test compares them.
"""

__all__ = ["LAYOUTS", "LIBRARIES", "MAJORITY_SIGNS", "METHODS", "READ", "TASKS"]

# jaxmix.layout.LAYOUTS
LAYOUTS = ("torch", "flax", "names")
# jaxmix.converters.layouts.TABLES
LIBRARIES = (
    "bonsai",
    "bonsai_gemma3",
    "easydel",
    "flax_transformers",
    "flax_unet",
    "gemma",
    "gemma_untransposed",
    "keras_hub",
    "keras_hub_gemma",
    "keras_hub_sd3",
    "levanter",
    "maxdiffusion_flux",
    "maxdiffusion_flux_bfl",
    "maxdiffusion_flux2",
    "maxdiffusion_wan",
    "maxdiffusion_ltx",
    "maxdiffusion_ltx2",
    "maxdiffusion_z_image",
    "maxtext_llama",
    "maxtext_qwen",
    "maxtext_mixtral",
    "maxtext_gemma2",
    "maxtext_gemma3",
    "openpi",
    "torchax",
    "tunix",
    "tunix_gemma",
)
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
