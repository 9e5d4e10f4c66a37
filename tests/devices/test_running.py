"""`attach`, `factored`, `Bank` and training on eight devices: as on one, shardings kept."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmix
from jaxmix import Adapter
from jaxmix.families import IA3, OFT, HiRA, LoHa, LoKr, LoRA, Replace, SHiRA, Together

from .compiled import large
from .spying import flat, grid, placed

D, H = 64, 96
SHAPES = {"up.weight": (H, D), "up.bias": (H,), "norm.weight": (H,), "odd.weight": (7, H)} | {
    "down.weight": (D, 7),
    "down.bias": (D,),
}
# fsdp: rows over all devices; tensor: the inner dimension over one axis; mixed: both. Dimensions
# that do not divide are replicated.
MESHES: dict[str, tuple[Any, dict[str, tuple[Any, ...]]]] = {
    "fsdp on 8": (flat, {"up.weight": ("x",), "down.weight": ("x",), "down.bias": ("x",)}),
    "tensor on 8": (flat, {"up.weight": ("x",), "up.bias": ("x",), "odd.weight": (None, "x")}),
    "fsdp on 2 × 4": (grid, {"up.weight": (("x", "y"),), "down.weight": (("x", "y"),)}),
    "mixed on 2 × 4": (
        grid,
        {
            "up.weight": ("y", "x"),
            "up.bias": ("y",),
            "norm.weight": ("y",),
            "odd.weight": (None, "y"),
            "down.weight": ("x",),
        },
    ),
}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32) / 8


BASE = {name: normal(*shape) for name, shape in SHAPES.items()}
X = normal(16, D, seed=1)


def lora(out: int, into: int, seed: int = 0, **more: Any) -> LoRA:
    return LoRA(normal(4, into, seed=seed), normal(out, 4, seed=seed), 0.5, **more)


def kinds() -> dict[str, Adapter]:
    """Returns adapters that add, rotate, read, scale, replace and change biases."""
    b1, a1, b2, a2 = (normal(*shape) for shape in ((H, 2), (2, D)) * 2)
    at = np.stack([np.arange(9, dtype=np.int32) * 7, np.arange(9, dtype=np.int32)])
    biased = Together((Replace(bias=normal(H, seed=2)), lora(H, D, 3)))
    updates: dict[str, dict[str, Any]] = {
        "lora": {"up": biased, "odd": lora(7, H), "down": lora(D, 7)},
        "dora": {"up": lora(H, D, 4, magnitude=1 + abs(normal(H)))},
        "oft": {"up": OFT(normal(4, 120)), "odd": OFT(normal(1, 28))},
        "loha": {"up": LoHa(b1, a1, b2, a2, 0.3)},
        "lokr": {"up": LoKr((normal(6, 8),), (normal(16, 8),), 0.5)},
        "hira": {"up": HiRA(normal(2, D), normal(H, 2), 0.5)},
        "shira": {"up": SHiRA(normal(9), at, 0.5)},
        "ia3": {"up": IA3(1 + normal(H))},
        "whole": {"norm": Replace(1 + normal(H, seed=5)), "down": Replace(normal(D, 7, seed=6))},
    }
    return {name: Adapter(own, 0.7, name=name) for name, own in updates.items()}


def forward(params: Any, x: Any) -> Any:
    h = jnp.tanh(x @ params["up.weight"].T + params["up.bias"][None]) * params["norm.weight"][None]
    return (h @ params["odd.weight"].T) @ params["down.weight"].T + params["down.bias"][None]


BANK = ("lora", "oft", "loha", "whole")


# Which kinds are tested where: each on every form of mesh.
HALF = {"fsdp on 8": 0, "tensor on 8": 1, "fsdp on 2 × 4": 1, "mixed on 2 × 4": 0}


@cache
def alone(half: int) -> tuple[Any, Any]:
    """Returns the params, and what one device computes for half of the kinds."""
    composed = jax.jit(jaxmix.compose)(BASE, list(kinds().values())[half::2])
    return composed, forward(composed, X)


def spread(mesh: str) -> tuple[jax.sharding.Mesh, dict[str, jax.Array], jax.Array]:
    """Returns the base and a batch on a mesh."""
    make, specs = MESHES[mesh]
    over = make()
    params = {name: placed(leaf, over, *specs.get(name, ())) for name, leaf in BASE.items()}
    return over, params, placed(X, over, "x")


def close(ours: Any, truth: Any, bound: float = 2e-5) -> None:
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(truth), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert np.abs(one - other).max() < bound * max(1.0, np.abs(other).max())


def same_places(ours: Any, theirs: Any) -> None:
    places = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    assert all(one.sharding.is_equivalent_to(other.sharding, one.ndim) for one, other in places)


@pytest.mark.parametrize("mesh", MESHES)
def test_composed_and_apart(mesh: str) -> None:
    """Many kinds in one mix: shardings are kept, and the base's leaves are unchanged."""
    over, params, x = spread(mesh)
    mixed = jaxmix.mix(*list(kinds().values())[HALF[mesh] :: 2])
    composed = jaxmix.compose(params, mixed)
    same_places(composed, params)
    truth, y = alone(HALF[mesh])
    close(composed, truth)
    leaves = jaxmix.attach(params, mixed)
    base, _ = jaxmix.detach(leaves)
    assert all(base[name] is params[name] for name in base)
    if mesh.startswith("fsdp"):
        return
    over_rows = NamedSharding(over, P("x"))
    run = jax.jit(jaxmix.factored(forward, "factored"), out_shardings=over_rows)
    close(run(leaves, x), y)


def test_donated() -> None:
    """The same with donated leaves."""
    _, params, _ = spread("mixed on 2 × 4")
    copy = {name: leaf.copy() for name, leaf in params.items()}
    donated = jaxmix.compose(copy, [kinds()["lora"], kinds()["oft"]], donate=True)
    same_places(donated, params)
    assert copy["up.weight"].is_deleted() and not params["up.weight"].is_deleted()
    close(donated, jax.jit(jaxmix.compose)(BASE, [kinds()["lora"], kinds()["oft"]]))


def test_factored_gathers_no_weight() -> None:
    """A weight sharded along its inner dimension is multiplied without moving it."""
    _, params, x = spread("mixed on 2 × 4")
    own = {name: kinds()[name] for name in ("lora", "loha", "lokr", "shira", "ia3", "oft")}
    leaves = jaxmix.attach(params, own.values())
    text = jax.jit(jaxmix.factored(forward, "factored")).lower(leaves, x[:4]).compile().as_text()
    # Tokens move, at most 4 × 96 numbers; a device holds 768 numbers of the weight.
    assert large(text, H * D // 8) == []


def test_bank() -> None:
    """Each row uses its own member of a bank of sharded params; choosing members never traces."""
    _, params, x = spread("mixed on 2 × 4")
    members = {name: kinds()[name] for name in BANK}
    bank = jaxmix.Bank(members, params)
    compose, traces = jax.jit(jaxmix.compose), []
    each = {name: forward(compose(BASE, member), X) for name, member in members.items()}
    each[""] = forward(BASE, X)

    @jax.jit
    def run(bank: Any, params: Any, x: Any, who: Any) -> Any:
        traces.append(1)
        return bank(forward)(params, x, who)

    for names in ((*members, None, "lora", "oft", None) * 2, (None,) * 16):
        y = run(bank, params, x, bank.who(list(names)))
        truth = np.stack([np.asarray(each[name or ""])[i] for i, name in enumerate(names)])
        close(y, truth)
    assert len(traces) == 1


def test_training() -> None:
    """A step of Adam over `trainable` with sharded values, the base by fsdp."""
    over, params, x = spread("fsdp on 8")
    mixed = jaxmix.mix(*(kinds()[name] for name in ("lora", "dora", "oft")))
    optimizer = optax.adam(1e-2)
    values, whole = jaxmix.trainable(mixed)

    def loss(values: Any, params: Any, x: Any) -> Any:
        leaves = jaxmix.attach(params, whole(values))
        return jnp.mean(jaxmix.factored(forward)(leaves, x) ** 2)

    def step(values: Any, state: Any, params: Any, x: Any) -> Any:
        value, slope = jax.value_and_grad(loss)(values, params, x)
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(slope, state, values)
            return optax.apply_updates(values, change), value

    def place(value: Any) -> Any:
        spec = P("x") if value.ndim and value.shape[0] % 8 == 0 else P()
        return NamedSharding(over, spec)

    places = jax.tree.map(place, values)
    there = jax.device_put(values, places)
    assert not all(place.is_fully_replicated for place in jax.tree.leaves(places))
    one = jax.jit(step)(values, optimizer.init(values), BASE, X)
    run = jax.jit(step, out_shardings=(places, None))
    many = run(there, optimizer.init(there), params, x)
    close(many[1], one[1], 1e-6)
    close(many[0], one[0], 1e-4)


def test_fit() -> None:
    """Learned strengths equal those of one device."""
    over, params, _ = spread("mixed on 2 × 4")
    mixed = jaxmix.mix(kinds()["lora"], kinds()["ia3"])
    batches = [(X, normal(16, D, seed=9))] * 3

    def distance(params: Any, batch: Any) -> Any:
        return jnp.mean((forward(params, batch[0]) - batch[1]) ** 2)

    there = [tuple(placed(half, over, "x") for half in batch) for batch in batches]
    found = jaxmix.fit(mixed, params, distance, there, progress=False)
    wanted = jaxmix.fit(mixed, BASE, distance, batches, progress=False)
    close(found.losses, wanted.losses)
    close(list(found.strengths.values()), list(wanted.strengths.values()), 1e-4)
