"""The models of a pipeline as one base, whose names start with the component: ``unet.conv_in``."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from jaxmix.converters.adapters.common.base_model import BaseModel

__all__ = ["component_of", "join_models"]

_Value = TypeVar("_Value")


def join_models(models: Mapping[str, BaseModel], description: str) -> BaseModel:
    """Joins the models of a pipeline.

    Args:
        models: The model of each component.
        description: The pipeline, for messages.

    Returns:
        A model whose modules have the component as prefix.
    """
    shapes = {
        f"{component}.{name}": shape
        for component, model in models.items()
        for name, shape in model.shapes.items()
    }

    def dispatch(read: Callable[[BaseModel, str], _Value]) -> Callable[[str], _Value]:
        def read_full(full: str) -> _Value:
            component, _, name = full.partition(".")
            return read(models[component], name)

        return read_full

    return BaseModel(
        shapes,
        dispatch(lambda model, name: model.read_weight(name)),
        description,
        dispatch(lambda model, name: model.read_bias(name)),
        dispatch(lambda model, name: model.conv1d(name)),
    )


def component_of(model: BaseModel, component: str) -> BaseModel | None:
    """Returns one component of a base that covers several models.

    Args:
        model: The base.
        component: The component's name, such as ``"transformer_2"``.

    Returns:
        The modules whose names start with the component, without it; None if there are none.

    Example:
        >>> from jaxmix.converters.adapters.common.base_model import base_model
        >>> component_of(base_model(["unet.conv_in", "vae.conv_in"]), "unet").modules
        ('conv_in',)
    """
    prefix = f"{component}."
    shapes = {
        name.removeprefix(prefix): shape
        for name, shape in model.shapes.items()
        if name.startswith(prefix)
    }
    if not shapes:
        return None
    order = (name.removeprefix(prefix) for name in model.order if name.startswith(prefix))
    return BaseModel(
        shapes,
        lambda name: model.read_weight(prefix + name),
        f"{component} of {model.description}",
        lambda name: model.read_bias(prefix + name),
        lambda name: model.conv1d(prefix + name),
        tuple(order),
    )
