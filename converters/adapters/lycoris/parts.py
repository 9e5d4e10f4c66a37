"""The parts of a pipeline: the models that one file may cover, by each program's prefixes.

A part has a *role*: the denoiser (``unet``, also where it is a transformer), or one of the text
encoders (``te1``, ``te2``, ``te3``). Each program has its own prefixes for these, and each pipeline
its own names.
"""

from collections.abc import Collection, Iterable, Sequence

__all__ = [
    "PARTS",
    "PREFIXES",
    "component_in",
    "components_of",
    "has_open_clip_names",
    "in_component",
    "is_second",
    "is_selected",
    "missing_component",
    "respell_module",
    "role_of",
    "spellings_of",
    "split_component",
]

# The prefixes of keys with underscores, and the role that each stands for.
PREFIXES: dict[str, str] = {
    "lora_unet": "unet",
    "lora_transformer": "unet",
    "lora_prior_unet": "unet",
    "lora_te": "te1",
    "lora_te1": "te1",
    "lora_te2": "te2",
    "lora_te3": "te3",
    "lora_prior_te": "te1",
    "oft_unet": "unet",
    "lycoris": "unet",
}

# The prefixes of keys with dots.
PARTS: tuple[str, ...] = (
    "model.diffusion_model",
    "diffusion_model",
    "transformer_2",
    "transformer",
    "unet",
    "prior",
    "controlnet",
    "text_encoder_3",
    "text_encoder_2",
    "text_encoder",
    "text_encoders.clip_l.transformer",
    "text_encoders.clip_g.transformer",
    "text_encoders.t5xxl.transformer",
    "cond_stage_model.transformer",
    "cond_stage_model.model",
    "conditioner.embedders.0.transformer",
    "conditioner.embedders.0.model",
    "conditioner.embedders.1.model",
)

# The names that a role may have in a tree or a pipeline of several models. Flux has two text
# encoders, and kohya's name of its second one is `lora_te3`.
_COMPONENTS: dict[str, tuple[str, ...]] = {
    "unet": ("unet", "transformer", "diffusion_model", "model.diffusion_model", "prior"),
    "te1": (
        "text_encoder",
        "te1",
        "text_encoders.clip_l.transformer",
        "cond_stage_model",
        "cond_stage_model.transformer",
        "conditioner.embedders.0.transformer",
    ),
    "te2": ("text_encoder_2", "te2", "text_encoders.clip_g.transformer"),
    "te3": ("text_encoder_3", "te3", "text_encoders.t5xxl.transformer", "text_encoder_2"),
}
# Text encoders whose modules have OpenCLIP's names: of SD 2, SDXL, and SDXL's refiner.
_OPEN_CLIP: dict[str, str] = {
    "cond_stage_model.model": "te1",
    "conditioner.embedders.1.model": "te2",
    "conditioner.embedders.0.model": "te2",
}
# Components that only their own names select: of two transformers, diffusers uses the first.
_SECOND = {"transformer_2": "unet", "unet_2": "unet"}
_ROLES = {
    **PREFIXES,
    **_SECOND,
    **_OPEN_CLIP,
    **{name: role for role, names in reversed(_COMPONENTS.items()) for name in names},
    "": "unet",
}


def role_of(part: str) -> str:
    """Returns the role of a part, by any program's prefix or a component's name.

    Args:
        part: The prefix of a file's keys, or the name of a pipeline's component. Names without a
            prefix belong to the denoiser.

    Returns:
        The role, or the part itself if it has none.

    Example:
        >>> role_of("lora_te2"), role_of("text_encoder_2"), role_of("transformer_2")
        ('te2', 'te2', 'unet')
    """
    return _ROLES.get(part, part)


def split_component(site: str) -> tuple[str, str]:
    """Splits a site's name into the component of a pipeline and the module; "" if it names none.

    Args:
        site: A site of an adapter, by any program's names.

    Example:
        >>> split_component("text_encoder_2.encoder.q"), split_component("blocks.0.ffn.0")
        (('text_encoder_2', 'encoder.q'), ('', 'blocks.0.ffn.0'))
    """
    components = (name for name in _known_components() if site.startswith(f"{name}."))
    component = max(components, key=len, default="")
    return component, site.removeprefix(f"{component}.") if component else site


def is_selected(part: str, wanted: object, parts: Collection[str]) -> bool:
    """Whether ``part=`` selects the keys with a prefix.

    Args:
        part: The prefix.
        wanted: The value of ``part=``: a prefix, or a name of the same role, such as the component
            of a pipeline for which the file is read.
        parts: All prefixes in the file. If the wanted one is among them, only it is selected.

    Example:
        >>> is_selected("lora_unet", "transformer_2", ["lora_unet", "lora_te1"])
        True
        >>> is_selected("transformer", "transformer_2", ["transformer", "transformer_2"])
        False
    """
    if wanted is None:
        return True
    if not isinstance(wanted, str):  # from an edited recipe; no key has such a prefix
        return False
    # A prefix of keys with underscores has no other meaning.
    is_exact = wanted in parts or wanted in PREFIXES
    return part == wanted if is_exact else role_of(part) == role_of(wanted)


def is_second(part: str) -> bool:
    """Whether a part is the second model of its role, which only its own name selects."""
    return part in _SECOND


def components_of(part: str) -> tuple[str, ...]:
    """Returns the names that a part may have in a tree or a pipeline of several models.

    Args:
        part: The prefix of a file's keys, or a role.

    Example:
        >>> components_of("lora_te2")[0], components_of("transformer_2")
        ('text_encoder_2', ('transformer_2',))
    """
    return (part,) if is_second(part) else _COMPONENTS.get(role_of(part), (part,))


def component_in(part: str, modules: Iterable[str]) -> str:
    """Returns the name of a part in a base of several models; "" in a single model.

    Args:
        part: The prefix of a file's keys, or a role.
        modules: The base's module names.

    Example:
        >>> component_in("lora_unet", ["transformer.proj_out", "text_encoder.proj"])
        'transformer'
    """
    first = {name.partition(".")[0] for name in modules}
    if len(first & _known_components()) < 2:
        return ""
    return next((name for name in components_of(part) if name in first), "")


def in_component(part: str, module: str, modules: Iterable[str]) -> str:
    """Returns a module's name in a base, after the name of its component if the base has several.

    Args:
        part: The prefix of a file's keys, or a role.
        module: The module's name, which may be that in the base already.
        modules: The base's module names.

    Example:
        >>> in_component("lora_unet", "proj", ["transformer.x", "text_encoder.x"])
        'transformer.proj'
    """
    is_whole = split_component(module)[0] in {*components_of(part), *_OPEN_CLIP}
    component = "" if is_whole else component_in(part, modules)
    return f"{component}.{module}" if component else module


def _known_components() -> set[str]:
    return {*_SECOND, *_OPEN_CLIP, *(name for names in _COMPONENTS.values() for name in names)}


def respell_module(part: str, module: str, separator: str = ".") -> tuple[str, ...]:
    """Returns a module's name, and its other names in some versions of its model.

    All names in CLIP's text encoder start with ``text_model.``, except when transformers 5 saves a
    ``CLIPTextModel``.

    Args:
        part: The prefix of a file's keys, or a role.
        module: The module's name.
        separator: The separator between the parts of the name.

    Example:
        >>> respell_module("te1", "text_model.encoder.layers.0.mlp.fc1")[1]
        'encoder.layers.0.mlp.fc1'
    """
    if role_of(part) not in ("te1", "te2"):
        return (module,)
    prefix = f"text_model{separator}"
    is_long = module.startswith(prefix)
    return (module, module.removeprefix(prefix) if is_long else prefix + module)


def has_open_clip_names(part: str) -> bool:
    """Whether a part has OpenCLIP's names, of which some mean another weight in transformers.

    Args:
        part: The prefix of a file's keys, or the name of a component.
    """
    return part in _OPEN_CLIP


def spellings_of(part: str, module: str, separator: str = ".") -> tuple[str, ...]:
    """Returns a module's names without and with each name of its component.

    Args:
        part: The prefix of a file's keys, or a role.
        module: The module's name.
        separator: What is between the parts of the name.

    Example:
        >>> spellings_of("prior", "proj")[:3]
        ('proj', 'unet.proj', 'transformer.proj')
    """
    names = respell_module(part, module, separator)
    if has_open_clip_names(part):
        return (f"{part}.{module}".replace(".", separator),)
    others = [name for name, role in _OPEN_CLIP.items() if role == role_of(part)]
    prefixes = [name.replace(".", separator) for name in (*components_of(part), *others)]
    return (*names, *(f"{p}{separator}{name}" for p in prefixes for name in names))


def missing_component(wanted: Sequence[str], modules: Iterable[str]) -> str:
    """Describes the absence of a model from a base of several models.

    Args:
        wanted: The names that the model may have, as `components_of` returns them.
        modules: The base's module names.

    Returns:
        A message; "" if the base is a single model, or has that one.
    """
    components = {name.partition(".")[0] for name in modules} & _known_components()
    # The first word of a single model's own names may be `transformer`, as in GPT-2.
    if len(components) < 2 or components.intersection(wanted):
        return ""
    return f"the base has no {wanted[0]}, only {', '.join(sorted(components))}"
