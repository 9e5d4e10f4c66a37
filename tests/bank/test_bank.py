"""The bank: each row gets the result of its own composed weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Bank
from jaxmix.errors import AdapterError, LayoutError, ShapeError, UnsupportedError
from jaxmix.families import OFT, LoHa, LoKr, LoRA

from ..laws.chains import ALL, FLAT, chain
from ..laws.draws import KINDS, Module, tree
from ..messages import full_text
from ..uncompiled import uncompiled
from ..unmerged.test_chains import inputs
from ..unmerged.test_chains import run as layer_of
from ..unmerged.test_uses import ADDITIVE_LAYER_MIX, LAYER_MIX, LAYERS, STACK, scanned

PARAMS = {"a.weight": jnp.asarray(np.random.default_rng(1).normal(size=(8, 6)), jnp.float32)}


def normal(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


def lora(r: int = 2, seed: int = 0) -> Adapter:
    return Adapter({"a": LoRA(normal(r, 6, seed=seed), normal(8, r, seed=seed), 0.5)}, name="lora")


def loha(seed: int = 0) -> Adapter:
    pair = normal(8, 2, seed=seed), normal(2, 6, seed=seed)
    return Adapter({"a": LoHa(*pair, *pair, 0.5)}, name="loha")  # pyright: ignore[reportCallIssue]


def oft(seed: int = 0) -> Adapter:
    return Adapter({"a": OFT(0.3 * normal(3, 1, seed=seed))}, name="oft")


def lokr() -> Adapter:
    return Adapter({"a": LoKr((normal(2, 3),), (normal(4, 2),), 0.5)}, name="lokr")


def run(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["a.weight"].T)


MEMBERS: dict[str, Any] = {
    "lora": lora(),
    "loha": 0.5 * loha(),
    "both": jaxmix.mix(lora(3, 1), oft()),
    "turned": jaxmix.mix(oft(2), lokr()),
}
X = normal(6, 4, 6)


def row_by_row(who: Any, members: Any = MEMBERS, x: Any = X) -> Any:
    """Computes one row after another, each with its composed weights."""
    rows = []
    for row, name in zip(x, who, strict=True):
        mixed = [] if name is None else [members[name]]
        with uncompiled():
            rows.append(run(jaxmix.compose(PARAMS, mixed), row[None])[0])
    return jnp.stack(rows)


def close(left: Any, right: Any) -> None:
    np.testing.assert_allclose(left, right, atol=2e-5)


def test_members_are_selected_by_name_number_or_none(backend: str) -> None:
    bank, who = Bank(MEMBERS, PARAMS), ["both", None, "lora", "turned", "loha", "both"]
    close(bank(run)(PARAMS, X, who), row_by_row(who))
    close(bank(run)(PARAMS, X, np.array([2, -1, 0, 3, 1, 2])), row_by_row(who))
    jitted = jax.jit(lambda bank, p, x, who: bank(run)(p, x, who))
    close(jitted(bank, PARAMS, X, bank.who(who)), row_by_row(who))


def test_all_families(backend: str) -> None:
    """A bank with one member per family, and of chains of three, on a layer with a bias."""
    module = Module("linear", (6, 8), True)
    kinds = [kind for kind in FLAT if kind in ALL]
    chains = [(kind,) for kind in kinds] + [tuple(kinds[i : i + 3]) for i in range(0, 36, 6)]
    params = tree({"site": module}, 1)
    members = {str(i): jaxmix.mix(*chain(kinds, module, i)) for i, kinds in enumerate(chains)}
    x = np.random.default_rng(2).normal(size=(len(chains) + 1, 2, 8))

    def layer(params: Any, x: Any) -> Any:
        w, b = params["site.weight"], params["site.bias"]
        return x @ jnp.asarray(w).T + jnp.asarray(b)[None, None]

    with jax.enable_x64(True):
        with uncompiled():
            bank = Bank(members, params)
        got = np.asarray(jax.jit(bank(layer))(params, x, np.arange(-1, len(chains))))
        for row, (number, kinds) in enumerate(((-1, ()), *enumerate(chains))):
            mixed = [members[str(number)]] if kinds else []
            with uncompiled():
                want = layer(jaxmix.compose(params, mixed), x[row][None])[0]
            error = np.abs(got[row] - want).max() / max(np.abs(want).max(), 1)
            assert error < 1e-9, kinds
    assert "site.weight: " in bank.explain()


@pytest.mark.parametrize(
    "kind", ["conv2d", "embedding", pytest.param("conv1d", marks=pytest.mark.thorough)]
)
def test_other_modules(kind: str, backend: str) -> None:
    """A member of every sixth family, and chains of two, on convolutions and embeddings."""
    module = KINDS[kind]
    chains = [(name,) for name in FLAT[::6]] + [("LoRA", FLAT[i]) for i in range(1, 36, 7)]
    params, x = tree({"site": module}, 1), inputs(kind, module)
    members = {str(i): jaxmix.mix(*chain(kinds, module, i)) for i, kinds in enumerate(chains)}
    with jax.enable_x64(True):
        rows = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)[:1]] * len(chains)), x)
        # A convolution has no form for a weight of each row's own: it is dense on request.
        how = "dense" if kind.startswith("conv") else "auto"
        with uncompiled():
            bank = Bank(members, params)
        got = jax.jit(bank(_rows, how))(params, rows, np.arange(len(chains)))
        got = jax.tree.map(np.asarray, got)
        for row, kinds in enumerate(chains):
            with uncompiled():
                own = jaxmix.compose(params, [members[str(row)]])
                want = layer_of(own, jax.tree.map(lambda leaf, i=row: leaf[i], rows))
            pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
            for left, right in pairs:
                error = np.abs(left[row] - right).max() / max(np.abs(right).max(), 1)
                assert error < 1e-9, kinds


def _rows(params: Any, rows: Any) -> Any:
    """A layer over rows, each a batch of one."""
    row = jax.tree.map(lambda leaf: leaf[0], rows)
    return jax.tree.map(lambda leaf: leaf[None], layer_of(params, row))


def test_scanned_layers(backend: str) -> None:
    """Members whose ranks and kinds differ by layer, and between members."""
    members = {
        "all": LAYER_MIX,
        "half": 0.5 * ADDITIVE_LAYER_MIX,
        "one": Adapter({"layers.2.fc": OFT(0.3 * normal(3, 1, seed=4))}, name="oft"),
    }
    x, who = normal(5, 3, 6), ["all", None, "half", "one", "all"]
    bank = Bank(members, STACK, layout=LAYERS)
    got = bank(lambda p, x: scanned(p, x[0])[None])(STACK, x, who)
    for row, name, own in zip(got, who, x, strict=True):
        mixed = [] if name is None else [members[name]]
        with uncompiled():
            want = scanned(jaxmix.compose(STACK, mixed, layout=LAYERS), own)
        close(row, want)


def test_repr() -> None:
    bank = Bank(MEMBERS, PARAMS)
    expected = "Bank of 4 at 1 leaves, room for 4 (lora, loha, both, turned)"
    assert repr(bank) == expected and repr(Bank({}, PARAMS)).startswith("Bank of 0 at 0 leaves")
    assert "R BlockDiagonal of 2 slots" in bank.explain()
    assert Bank({}, PARAMS).explain() == "no leaf is changed"


def test_strengths_per_row(backend: str) -> None:
    """A row's mix is all members in order, each at its strength, including rotations."""
    bank = Bank(MEMBERS, PARAMS)
    strengths = np.random.default_rng(3).uniform(-1, 1, (6, 4)).astype(np.float32)
    strengths[2] = 0
    rows = []
    for row, own in zip(X, strengths, strict=True):
        parts = [
            part.renamed(f"{name} {part.name}")
            for (name, member), s in zip(MEMBERS.items(), own, strict=True)
            for part in (member * float(s)).parts
        ]
        with uncompiled():
            rows.append(run(jaxmix.compose(PARAMS, parts), row[None])[0])
    close(bank(run)(PARAMS, X, strengths), jnp.stack(rows))
    named = [dict(zip(MEMBERS, map(float, own), strict=True)) for own in strengths]
    close(bank(run)(PARAMS, X, named), jnp.stack(rows))


def test_members_change_without_retracing(backend: str) -> None:
    """Replaced, removed, and added up to the bank's capacity; beyond it there is one more trace."""
    count = [0]

    def counted(params: Any, x: Any) -> Any:
        count[0] += 1
        return run(params, x)

    jitted = jax.jit(lambda bank, p, x, who: bank(counted)(p, x, who))
    members = {"one": lora(3, 1), "two": jaxmix.mix(lora(2, 2), oft(1))}
    bank = Bank(members, PARAMS, capacity=4)

    def check(bank: Bank, members: Any, who: Any) -> None:
        close(jitted(bank, PARAMS, X, bank.who(who)), row_by_row(who, members))

    who = ["one", "two", None, "two", "one", "one"]
    check(bank, members, who)
    members["one"] = lora(2, 5)
    bank = bank.replace("one", members["one"])
    check(bank, members, who)
    members["three"] = oft(7)
    bank = bank.add("three", members["three"])
    check(bank, members, ["three", *who[1:]])
    check(bank.remove("three"), members, who)
    first = count[0]
    assert first == 1
    members |= {"four": lora(2, 8), "five": lora(9, 9)}
    bank = bank.add("four", members["four"]).add("five", members["five"])
    check(bank, members, ["five", "four", *who[2:]])
    assert count[0] == 2 and bank.capacity >= 5


def test_gradients_reach_the_tokens(backend: str) -> None:
    bank, who = Bank(MEMBERS, PARAMS), ["both", None, "lora", "turned", "loha", "both"]
    got = jax.jit(jax.grad(lambda x: (bank(run)(PARAMS, x, who) ** 2).sum()))(X)
    close(got, jax.grad(lambda x: (row_by_row(who, x=x) ** 2).sum())(X))


def test_refused() -> None:
    bank = Bank(MEMBERS, PARAMS)
    with pytest.raises(
        AdapterError,
        match=full_text(
            "the bank has no members of these names:\n"
            "  'no' (rows 1)\n"
            "It has 'lora', 'loha', 'both', 'turned'."
        ),
    ):
        bank(run)(PARAMS, X[:2], ["lora", "no"])
    with pytest.raises(
        AdapterError,
        match=full_text(
            "the bank has no members of these numbers:\n"
            "  row 0: 9\n"
            "It has 0 'lora', 1 'loha', 2 'both', 3 'turned'; -1 is the "
            "base."
        ),
    ):
        bank(run)(PARAMS, X[:2], np.array([9, 0]))
    with pytest.raises(
        ShapeError,
        match=full_text("who has 3 entries, but the batch has 2 rows, expected one entry per row."),
    ):
        bank(run)(PARAMS, X[:2], ["lora"] * 3)
    with pytest.raises(
        AdapterError,
        match=full_text(
            "who is 'lora', expected one entry per row: a member's name "
            "or None, a member's number (-1 for the base), or a strength "
            "for each member. For a single row write ['lora']."
        ),
    ):
        bank(run)(PARAMS, X, "lora")
    with pytest.raises(
        AdapterError,
        match=full_text(
            "who is an array of float32 with shape (2, 3), expected "
            "integers (rows,) or floats (rows, 4), a strength for each "
            "member of the bank."
        ),
    ):
        bank(run)(PARAMS, X[:2], np.zeros((2, 3), np.float32))
    with pytest.raises(
        AdapterError,
        match=full_text("who has a strength that is not finite, expected finite numbers."),
    ):
        bank(run)(PARAMS, X[:1], np.full((1, 4), np.nan, np.float32))
    message = "Bank got a list, expected {name: adapter or mix}."
    with pytest.raises(AdapterError, match=full_text(message)):
        Bank([lora()], PARAMS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        AdapterError,
        match=full_text(
            "Bank got members that are not an adapter or a mix, or names "
            "that are not strings:\n"
            "  'x': int\n"
            "Load adapters with jaxmix.load, and mix them with "
            "jaxmix.mix."
        ),
    ):
        Bank({"x": 3}, PARAMS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        AdapterError,
        match=full_text(
            "Bank: capacity is 1, expected an integer of at least 4, the number of members."
        ),
    ):
        Bank(MEMBERS, PARAMS, capacity=1)
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the "
            "layout 'names':\n"
            "  z: no leaf for its weight; the nearest are a.weight\n"
            "Was the adapter trained on another model? If the leaves "
            "have other names, pass layout=jaxmix.Layout(…) with rules. "
            "No name map matches all of them to leaves."
        ),
    ):
        Bank({"z": Adapter({"z": LoRA(normal(2, 6), normal(8, 2), 1.0)})}, PARAMS)
    with pytest.raises(
        LayoutError,
        match=full_text(
            "the params differ from those that the bank was made for:\n"
            "  a.weight: found no leaf, expected shape (8, 6)\n"
            "Call it with the original params, or make a bank for the "
            "new ones."
        ),
    ):
        bank(run)({"b.weight": PARAMS["a.weight"]}, X, [None] * 6)
    message = "Bank.add: the bank already has a member 'lora'. Use bank.replace(…)."
    with pytest.raises(AdapterError, match=full_text(message)):
        bank.add("lora", lora())
    with pytest.raises(
        AdapterError,
        match=full_text(
            "Bank.replace: there is no member 'no'. The bank has 'lora', 'loha', 'both', 'turned'."
        ),
    ):
        bank.replace("no", lora())
    with pytest.raises(
        AdapterError,
        match=full_text(
            "Bank.remove: there is no member 'no'. The bank has 'lora', 'loha', 'both', 'turned'."
        ),
    ):
        bank.remove("no")
    with pytest.raises(
        ShapeError,
        match=full_text(
            "the batch's leaves differ in their first axis, expected the "
            "same number of rows in all:\n"
            "  [0]: (6, 4, 6)\n"
            "  [1]: (2, 4, 6)"
        ),
    ):
        bank(lambda p, x: x[0])(PARAMS, (X, X[:2]), [None] * 6)
    with pytest.raises(
        ShapeError,
        match=full_text(
            "the function returns an array of shape () for a batch of "
            "one row, expected rows as the first axis. Take a mean over "
            "the batch outside the function."
        ),
    ):
        bank(lambda p, x: run(p, x).mean())(PARAMS, X, [None] * 6)


def test_refused_inside_jit() -> None:
    bank = Bank(MEMBERS, PARAMS)
    again = jax.tree.map(lambda x: x, bank)
    with pytest.raises(
        UnsupportedError,
        match=full_text(
            "Bank.add: this bank is the result of a pytree transformation and holds only arrays. "
            "Call the method on the original bank."
        ),
    ):
        again.add("new", lora())
    with pytest.raises(
        UnsupportedError,
        match=full_text(
            "names of members can't be used in a traced function that "
            "has the bank as an argument: it also runs with other "
            "members. Call bank.who([...]) outside and pass the result."
        ),
    ):
        jax.jit(lambda bank: bank(run)(PARAMS, X, ["lora"] * 6))(bank)
    ones = jnp.ones((6, 4))
    with pytest.raises(
        UnsupportedError,
        match=full_text(
            "strengths for each member need the members themselves, "
            "since some do more than add to the weight (at a.weight), "
            "but this bank is an argument of a traced function. Make it "
            "with Bank(…, blend=True)."
        ),
    ):
        jax.jit(lambda bank: bank(run)(PARAMS, X, ones))(bank)
    blend = Bank(MEMBERS, PARAMS, blend=True)
    close(
        jax.jit(lambda bank: bank(run)(PARAMS, X, ones))(blend),
        bank(run)(PARAMS, X, np.ones((6, 4))),
    )


def test_unknown_traced_number_gives_nan(backend: str) -> None:
    bank = Bank(MEMBERS, PARAMS)
    got = jax.jit(lambda who: bank(run)(PARAMS, X[:2], who))(jnp.array([7, 0]))
    assert jnp.isnan(got[0]).all() and jnp.isfinite(got[1]).all()
