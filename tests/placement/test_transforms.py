"""Transforms of names: which pattern matches, the new name, and the order of transforms."""

import re
from typing import Any

import pytest

from jaxmix.placement.regions import Piece, Region
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
    match = transform.match(name)
    assert (match and match[1]) == loaded


def loaded_names(names: list[str], transforms: list[Transform]) -> dict[str, str]:
    """The names in memory of tensors that are only renamed."""
    loaded = loaded_pieces(names, transforms)
    return {name: pieces[0].name for name, pieces in loaded.items() if len(pieces) == 1}


def test_renamings_are_applied_in_order() -> None:
    """Each renaming applies to the result of the previous ones."""
    first = Transform("rename", ("a",), ("b",))
    second = Transform("rename", ("b",), ("c",))
    assert loaded_names(["a.w"], [first, second]) == {"a.w": "c.w"}
    assert loaded_names(["a.w"], [second, first]) == {"a.w": "b.w"}


def test_group_waits_for_its_first_pattern() -> None:
    """Names that are already converted are not shifted again."""
    group = Transform("group", ("norm0", "norm1"), ("norm1", "norm2"))
    assert loaded_names(["h.norm0.w", "h.norm1.w"], [group]) == {
        "h.norm0.w": "h.norm1.w",
        "h.norm1.w": "h.norm2.w",
    }
    converted = ["h.norm1.w", "h.norm2.w"]
    assert loaded_names(converted, [group]) == dict(zip(converted, converted, strict=True))


def convert(sources: list[str], targets: list[str], *operations: tuple[str, dict[str, Any]]) -> Any:
    """A conversion."""
    settings = tuple((name, tuple(values.items())) for name, values in operations)
    return Transform("convert", tuple(sources), tuple(targets), operations=settings)


ROPE = {"inverse": False, "permute_layer_names": ("q",), "heads": 4}
PIECES: dict[str, tuple[Any, str, tuple[Piece, ...]]] = {
    "chunk": (
        convert(["qkv"], ["q", "k"], ("Chunk", {"dim": 0})),
        "qkv.bias",
        (
            Piece("q.bias", disk=Region(-1, 0, 2)),
            Piece("k.bias", disk=Region(-1, 1, 2)),
        ),
    ),
    "split": (
        convert(["qk"], ["q", "k"], ("Split", {"dim": 0, "sizes": (5, 3)})),
        "qk",
        (
            Piece("q", disk=Region(-1, 0, 2, sizes=(5, 3))),
            Piece("k", disk=Region(-1, 1, 2, sizes=(5, 3))),
        ),
    ),
    "split without sizes": (
        convert(["qk"], ["q", "k"], ("Split", {"dim": 0})),
        "qk",
        (
            Piece("q", disk=Region(-1, 0, 2, sizes=(0, 0))),
            Piece("k", disk=Region(-1, 1, 2, sizes=(0, 0))),
        ),
    ),
    "interleave": (
        convert(["w13"], ["up"], ("Interleave", {"dim": 1, "inverse": False})),
        "w13",
        (Piece("up", heads=1),),
    ),
    "interleave and chunk": (
        convert(
            ["w13"], ["g", "u"], ("Interleave", {"dim": 1, "inverse": False}), ("Chunk", {"dim": 1})
        ),
        "w13",
        (
            Piece("g", disk=Region(-1, 0, 2, 1, alternates=True)),
            Piece("u", disk=Region(-1, 1, 2, 1, alternates=True)),
        ),
    ),
    "rope": (
        convert(["wq"], ["q"], ("PermuteForRope", {"inverse": True, "heads": 4})),
        "wq",
        (Piece("q", heads=-4),),
    ),
    "chunk and rope": (
        convert(["qv"], ["q", "v"], ("Chunk", {"dim": 0}), ("PermuteForRope", ROPE)),
        "qv",
        (
            Piece("q", disk=Region(-1, 0, 2), heads=4),
            Piece("v", disk=Region(-1, 1, 2)),
        ),
    ),
    "rope of an unknown number of heads": (
        convert(["wq"], ["q"], ("PermuteForRope", {"inverse": False})),
        "wq",
        (
            Piece(
                "q",
                problem="PermuteForRope (for as many heads as the model's config.json states: pass "
                "it as names=)",
            ),
        ),
    ),
    "concatenate": (
        convert(["q_conv.", "k_conv."], ["conv."], ("Concatenate", {"dim": 0})),
        "k_conv.weight",
        (Piece("conv.weight", memory=Region(-1, 1, 2)),),
    ),
    "concatenate stacks": (
        convert(["gate", "up"], ["gate_up"], ("Concatenate", {"dim": 1})),
        "up",
        (Piece("gate_up", memory=Region(-1, 1, 2, 1)),),
    ),
    "experts": (
        convert(
            ["e.*.gate", "e.*.up"],
            ["e.gate_up"],
            ("MergeModulelist", {"dim": 0}),
            ("Concatenate", {"dim": 1}),
        ),
        "e.7.up",
        (Piece("e.gate_up", memory=Region(7, 1, 2)),),
    ),
}


@pytest.mark.parametrize(("transform", "name", "pieces"), PIECES.values(), ids=PIECES)
def test_pieces(transform: Transform, name: str, pieces: tuple[Piece, ...]) -> None:
    """Each of transformers' operations loads a tensor as these pieces."""
    assert loaded_pieces([name], [transform])[name] == pieces


def test_shards_are_counted() -> None:
    """A tensor may consist of any number of leaves; an absent one is reported."""
    transform = convert(["shard_*.w"], ["all.w"], ("Concatenate", {"dim": 0}))
    pieces = loaded_pieces(["shard_0.w", "shard_1.w"], [transform])
    assert pieces["shard_1.w"] == (Piece("all.w", memory=Region(-1, 1, 2)),)
    (piece,) = loaded_pieces(["shard_1.w"], [transform])["shard_1.w"]
    assert piece.problem == "Concatenate, with other shards that are absent"


def test_equal_sources_share_one_expression() -> None:
    """Each scope has its own transforms, but their expression is compiled once."""
    unscoped = Transform("rename", ("^tower",), ("model.tower",))
    scoped = Transform("rename", ("^tower",), ("model.tower",), scope="model")
    pattern = unscoped._pattern
    re.purge()
    assert scoped._pattern is pattern
