"""The tables of the converters, as `import jaxmix` registers them."""

from jaxmix import registry, tables
from jaxmix.layout import libraries


def test_tables_are_registered_once() -> None:
    """Several packages may import the module; each tree would be tried twice otherwise."""
    assert registry.LIBRARIES.count(tables._layouts) == 1
    assert registry.NAME_MAPS.count((tables._map, tables._maps)) == 1


def test_each_layout_is_found_by_its_own_name() -> None:
    assert {name for name, layout in libraries().items() if layout.name != name} == set()
    assert len(libraries()) > 20


def test_a_map_is_found_by_a_config_and_unknown_configs_have_none() -> None:
    """All maps are listed, including the one of a config."""
    config = {"model_type": "bert", "architectures": ["BertModel"]}
    found = tables._map(config)
    assert found is not None and any(found == one for one in tables._maps())
    assert tables._map({"model_type": "unheard_of"}) is None and tables._map({}) is None
