"""Names on disk and in memory, by transforms or by a table."""

from jaxmix.placement.name_map import NameMap
from jaxmix.placement.regions import Piece
from jaxmix.placement.transforms import Transform

RENAME = Transform("rename", ("^old",), ("net",))


def test_transforms_are_applied_in_order() -> None:
    """A name that no transform matches is its own."""
    again = Transform("rename", ("^net",), ("model",))
    names = ["old.q", "other.q", "net.q"]
    loaded = NameMap("any", (RENAME, again)).loaded(names)
    assert loaded == {
        "old.q": (Piece("model.q"),),
        "other.q": (Piece("other.q"),),
        "net.q": (Piece("model.q"),),
    }
    assert NameMap("any").loaded(names) == {name: (Piece(name),) for name in names}
    assert NameMap("any", (RENAME,)).loaded([]) == {}


def test_order_of_experts_is_that_of_whole_module_names() -> None:
    """A module whose name only ends in the same letters is another one."""
    names = NameMap("any", inputs_first=("experts.up", "down"))
    assert [
        names.has_inputs_first(module)
        for module in ("experts.up", "h.0.experts.up", "h.down", "down", "h.step_down", "up", "")
    ] == [True, True, True, True, False, False, False]
