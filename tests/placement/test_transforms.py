"""Transforms of names: which pattern matches, what it becomes, and in which order."""

import pytest

from jaxmix.placement.transforms import Transform, loaded_pieces


@pytest.mark.parametrize(
    ("transform", "name", "loaded"),
    [
        (Transform("rename", ("^tower",), ("model.tower",)), "tower.w", "model.tower.w"),
        (Transform("rename", ("^tower",), ("model.tower",)), "towers.w", None),
        (Transform("rename", (r"layer\.(\d+)",), (r"layers.\1",)), "h.layer.7.q", "h.layers.7.q"),
        (Transform("rename", ("fc", "fc1"), ("mlp",)), "h.fc1.w", "h.mlp.w"),
        (
            Transform("rename", ("q",), ("p",), "vision", "model"),
            "model.vision.q",
            "model.vision.p",
        ),
        (Transform("rename", ("q",), ("p",), "vision", "model"), "vision.q", "vision.p"),
        (Transform("rename", ("q",), ("p",), "vision", "model"), "text.q", None),
        (Transform("rename", ("^q",), ("p",), "", "vit"), "vit.q.w", "vit.p.w"),
    ],
)
def test_match(transform: Transform, name: str, loaded: str | None) -> None:
    """A pattern matches whole names, inside its scope, and the longest source wins."""
    found = transform.match(name)
    assert (found and found[1]) == loaded


def loaded_names(names: list[str], transforms: list[Transform]) -> dict[str, str]:
    """The names in memory of tensors that are only renamed."""
    loaded = loaded_pieces(names, transforms)
    return {name: pieces[0].name for name, pieces in loaded.items() if len(pieces) == 1}


def test_renamings_are_applied_in_order() -> None:
    """Each acts on what the ones before it made."""
    first = Transform("rename", ("a",), ("b",))
    then = Transform("rename", ("b",), ("c",))
    assert loaded_names(["a.w"], [first, then]) == {"a.w": "c.w"}
    assert loaded_names(["a.w"], [then, first]) == {"a.w": "b.w"}


def test_a_group_waits_for_its_first_pattern() -> None:
    """Names that are converted already are not shifted again."""
    group = Transform("group", ("norm0", "norm1"), ("norm1", "norm2"))
    assert loaded_names(["h.norm0.w", "h.norm1.w"], [group]) == {
        "h.norm0.w": "h.norm1.w",
        "h.norm1.w": "h.norm2.w",
    }
    same = ["h.norm1.w", "h.norm2.w"]
    assert loaded_names(same, [group]) == dict(zip(same, same, strict=True))
