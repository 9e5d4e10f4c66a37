"""Tables of modules by their names on disk and in memory."""

import pytest

from jaxmix.placement.regions import Piece, Region, swapped_halves
from jaxmix.placement.templates import Template, Templates

QKV = Template("double.{}.qkv", ("h.{}.q", "h.{}.k", "h.{}.v"))
TABLE = Templates(
    (
        QKV,
        Template("double.{}.mlp.{}", ("h.{}.ff.{}",)),
        Template("final", ("norm_out",), has_swapped_halves=True),
        Template("single.{}.mod", ("s.{}.norm",), swap_ratio=2),
        Template("single.{}.fused", ("s.{}.q", "s.{}.mlp"), ratio=(1, 4)),
        Template("pos", ("pos_embed",), is_tensor=True),
        Template("text_proj", ("text.proj",), is_transposed=True),
    ),
    prefixes=("model.diffusion_model.",),
    suffixes=(("scale", "weight"), ("in_proj_weight", "in_proj.weight")),
    components=("transformer.",),
)


@pytest.mark.parametrize(
    ("tensor", "pieces"),
    [
        (
            "double.3.qkv.bias",
            tuple(Piece(f"h.3.{x}.bias", Region(part=i, parts=3)) for i, x in enumerate("qkv")),
        ),
        ("double.3.mlp.0.weight", (Piece("h.3.ff.0.weight"),)),
        ("final.weight", swapped_halves("norm_out.weight")),
        ("single.0.mod.weight", (Piece("s.0.norm.weight", swap_ratio=2),)),
        (
            "single.1.fused.weight",
            tuple(
                Piece(f"s.1.{x}.weight", Region(part=i, parts=2, sizes=(1, 4), is_ratio=True))
                for i, x in enumerate(("q", "mlp"))
            ),
        ),
        ("pos", (Piece("pos_embed"),)),
        ("text_proj.weight", (Piece("text.proj.weight", is_transposed=True),)),
        ("model.diffusion_model.double.0.mlp.2.bias", (Piece("h.0.ff.2.bias"),)),
        ("transformer.double.0.mlp.2.bias", (Piece("transformer.h.0.ff.2.bias"),)),
        ("double.0.mlp.2.scale", (Piece("h.0.ff.2.weight"),)),
        ("other.0.weight", (Piece("other.0.weight"),)),
        ("double.x.qkv.weight", (Piece("double.x.qkv.weight"),)),
    ],
)
def test_pieces_of_a_tensor(tensor: str, pieces: tuple[Piece, ...]) -> None:
    """Numbers, prefixes and suffixes are carried over; unknown names stay."""
    assert TABLE.pieces(tensor) == pieces


def test_sources_need_all_their_targets() -> None:
    """Without v there is no qkv, and modules of different blocks are not joined."""
    qkv = [f"h.3.{x}" for x in "qkv"]
    assert TABLE.sources([*qkv, "h.1.ff.0", "h.1.q", "h.2.k", "h.2.v", "lost"]) == {
        "double.3.qkv": tuple(qkv),
        "double.1.mlp.0": ("h.1.ff.0",),
    }


def test_names_on_disk_of_a_module() -> None:
    """`stored` is the inverse of `pieces`."""
    ((name, pieces),) = TABLE.stored("h.7.k")
    assert name == "double.7.qkv" and pieces == TABLE.pieces("double.7.qkv.weight")
    assert list(TABLE.stored("pos_embed")) == [("pos", (Piece("pos_embed"),))]
    assert list(TABLE.stored("h.7.x")) == []


def test_names_on_disk_are_known() -> None:
    assert TABLE.has_source("double.12.qkv") and TABLE.has_source("pos")
    assert not TABLE.has_source("double.qkv") and not TABLE.has_source("h.0.q")


def test_tensor_of_a_module() -> None:
    """A name that the table's suffixes respell is a tensor itself."""
    assert TABLE.tensor_of("double.0.qkv") == "double.0.qkv.weight"
    assert TABLE.tensor_of("attn.in_proj_weight") == "attn.in_proj_weight"


def test_dots_match_dots_only() -> None:
    table = Templates((Template("a.{}.b", ("c.{}",)),))
    assert table.pieces("axb.0.b.weight") == (Piece("axb.0.b.weight"),)
    assert table.pieces("a.0xb.weight") == (Piece("a.0xb.weight"),)
