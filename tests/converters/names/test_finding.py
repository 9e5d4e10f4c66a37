"""The name map of a model, among those of text and of image models."""

from jaxmix.converters.names.finding import all_maps, map_of
from jaxmix.converters.names.images import image_maps


def test_map_is_found_by_type_or_class() -> None:
    """None of a model that is unknown, or that says nothing."""
    flux = {"_class_name": "FluxTransformer2DModel"}
    found = [map_of(config) for config in (flux, {"model_type": "bert"})]
    assert [names.name if names else None for names in found] == ["flux", "bert"]
    assert map_of({}) is map_of({"model_type": "x"}) is map_of({"_class_name": "bert"}) is None


def test_each_map_is_found_by_its_own_name() -> None:
    """No image model has the name of a text model, which may have several maps."""
    names = dict.fromkeys(names.name for names in all_maps())
    found = [map_of({"model_type": name}) for name in names]
    assert [x.name if x else None for x in found] == list(names)
    assert all(any(names is x for x in found) for names in image_maps())
