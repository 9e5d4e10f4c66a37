"""The bank: many mixes in one batch, each row its own."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool

from jaxmix.adapter import Adapter
from jaxmix.bank import calls, making
from jaxmix.bank import who as rows_
from jaxmix.bank.leaves import Kept
from jaxmix.errors import AdapterError, UnsupportedError
from jaxmix.mixing import Mix
from jaxmix.placement.layout import Layout

__all__ = ["Bank"]

Member = Adapter | Mix


@jax.tree_util.register_pytree_with_keys_class
class Bank:
    """Many mixes in one batch: each row its own, and the base's product for all of them at once.

    ``bank(fn)(params, batch, who)`` gives for each row what ``fn(compose(params, mix), row)``
    gives, ``mix`` being the row's own. At each weight, ``y = L((x R) Wᵀ) + x Δᵀ``: the base's
    product is one for the whole batch, and a row reads its own L, R and Δ once. (A convolution
    makes each row's dense weight, and so does a lookup under an L that is no diagonal.)

    A bank is a pytree. Given to a function under `jax.jit` as an argument, it is traced once: who
    is for which row, and members that are exchanged, removed or put into free slots, do not trace
    it again. Maps are made when the bank is, of the params that it is given, so call it with these.

    Args:
        members: ``{name: adapter or mix}``; the order counts where rows mix several of them.
        params: the base, any pytree of weights.
        layout: where the sites lie in the tree, as in `jaxmix.compose`.
        capacity: for how many members there is to be room; the next power of two by default. Each
            kind of operators gets room in proportion: with 8 members and a capacity of 16, a kind
            that 3 of them have has room for 6.
        blend: whether members travel with the pytree. Only then can a bank that is an argument of a
            function under `jax.jit` mix members that do not simply add at a strength for each; and
            then another member is another program.

    Raises:
        AdapterError: if members are no ``{name: adapter or mix}``, or capacity is less than they
            are.
        LayoutError: as `jaxmix.compose`; on a call, if the params are not those of the bank.
        ShapeError: as `jaxmix.compose`; on a call, if the batch's leaves differ in their rows.

    Example:
        >>> from jaxmix.families import LoRA
        >>> def lora(k):
        ...     return Adapter({"proj": LoRA(jnp.full((1, 3), k), jnp.ones((2, 1)), 1.0)})
        >>> params = {"proj.weight": jnp.zeros((2, 3))}
        >>> bank = Bank({"one": lora(1.0), "two": lora(2.0)}, params)
        >>> run = bank(lambda params, x: x @ params["proj.weight"].T)
        >>> run(params, jnp.ones((3, 3)), ["two", None, "one"])[:, 0].tolist()
        [6.0, 0.0, 3.0]
        >>> run(params, jnp.ones((1, 3)), jnp.array([[1.0, 0.5]]))[:, 0].tolist()
        [6.0]

    Source: DESIGN.md, how a mix is computed; PEFT's ``adapter_names`` for LoRA; punica and S-LoRA
    (https://arxiv.org/abs/2310.18547, https://arxiv.org/abs/2311.03285) for grouped products.
    """

    leaves: tuple[Kept, ...]
    taken: Bool[Array, " capacity"]
    blend: dict[str, Member] | None
    names: tuple[str | None, ...]
    _origin: making.Origin | None

    def __init__(
        self,
        members: Mapping[str, Member],
        params: Any,
        *,
        layout: Layout | str | None = None,
        capacity: int | None = None,
        blend: bool = False,
    ):
        found: dict[str, Any] = making.checked(members, "Bank")
        room = making.capacity(capacity, len(found))
        base = making.base_of(params, found, layout)
        self._fill(base, dict(enumerate(found.values())), layout, room)
        self.blend = found if blend else None
        self.names = tuple(found)
        self._origin = making.Origin(base, found, layout)

    capacity = property(lambda self: self.taken.shape[0], doc="For how many members there is room.")

    def __call__(self, fn: Callable[..., Any]) -> Callable[[Any, Any, Any], Any]:
        """A function of params, a batch, and who each row is for.

        Args:
            fn: ``(params, batch) -> result``, any function that JAX can trace; rows are the first
                axis of every leaf of the batch and of the result. It is run under `jax.vmap` on one
                row at a time, as a batch of one.

        Returns:
            ``(params, batch, who) -> result``. ``who`` has for each row a member's name or None for
            the base; or is an array of their numbers (rows,), -1 for the base; or of strengths
            (rows, members), or ``{name: strength}`` for each row: then a row's mix is that of all
            members in order, each at its strength. A traced number that is of no member gives NaN.
        """

        @wraps(fn)
        def run(params: Any, batch: Any, who: Any) -> Any:
            pick = self.who(who)
            return calls.run(fn, params, batch, pick, self.leaves, self.taken, self._blended)

        return run

    def who(self, who: Any) -> Any:
        """Who each row is for, as an array, for a function under `jax.jit`.

        Args:
            who: as a call takes it.

        Returns:
            Members' numbers (rows,) int32, or strengths (rows, members).

        Raises:
            AdapterError: if a name or a number is of no member, or it is nothing that says it.
            UnsupportedError: if names are given inside a traced function that has the bank as its
                argument.

        Example:
            >>> bank = Bank({"fr": Adapter({}), "de": Adapter({})}, {})
            >>> bank.who(["de", None]).tolist()
            [1, -1]
        """
        is_array = rows_.is_array(who)
        if isinstance(self.taken, Tracer):
            if not is_array:
                raise UnsupportedError(
                    "names of members in a traced function that has the bank as its argument: the "
                    "program outlives them. Say bank.who([...]) outside, and hand that in."
                )
            return rows_.as_array(who, None)
        return rows_.read(who, self.names)

    def add(self, name: str, member: Member) -> "Bank":
        """The bank with one more member.

        Args:
            name: its name, a new one.
            member: an adapter or a mix.

        Returns:
            A new bank. It is the same program, if its kinds of operators are there at its leaves
            and have a free slot; else it is made anew, with twice the room if that was all taken.

        Raises:
            AdapterError: if the name is taken, or it is no adapter.
            UnsupportedError: if the bank came out of a transformation of pytrees.
        """
        making.checked({name: member}, "Bank.add")
        if name in self.names:
            raise AdapterError(
                f"Bank.add: the bank has a member {name!r} already. Write bank.replace(…)."
            )
        origin = self._made_of("add")
        free = [i for i, old in enumerate(self.names) if old is None]
        number = free[0] if free else len(self.names)
        names = [*self.names, None] if number == len(self.names) else list(self.names)
        names[number] = name
        return self._with(origin, {**origin.members, name: member}, number, names)

    def replace(self, name: str, member: Member) -> "Bank":
        """The bank with another member under a name; see `add`.

        Raises:
            AdapterError: if there is no such member, or it is no adapter.
            UnsupportedError: as `add`.
        """
        making.checked({name: member}, "Bank.replace")
        origin = self._made_of("replace")
        number = self._number(name, "replace")
        return self._with(origin, {**origin.members, name: member}, number, list(self.names))

    def remove(self, name: str) -> "Bank":
        """The bank without a member; the others keep their numbers.

        Raises:
            AdapterError: if there is no such member.
            UnsupportedError: as `add`.
        """
        origin = self._made_of("remove")
        number = self._number(name, "remove")
        names = [None if old == name else old for old in self.names]
        members = {key: old for key, old in origin.members.items() if key != name}
        leaves = tuple(leaf.freed(number) for leaf in self.leaves)
        return self._new(leaves, self.taken.at[number].set(False), members, names)

    def explain(self) -> str:
        """How each leaf's products are run: the kinds with their slots, or why it is whole."""
        return "\n".join(leaf.described() for leaf in self.leaves) or "no leaf is changed"

    def __repr__(self) -> str:
        there = [name for name in self.names if name is not None]
        shown = ", ".join([*there[:4], *(["…"] if len(there) > 4 else [])])
        return (
            f"Bank of {len(there)} at {len(self.leaves)} leaves, room for {self.capacity} ({shown})"
        )

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], making.Names]:
        """Its arrays, and the names, which do not count when structures are compared."""
        key = jax.tree_util.GetAttrKey
        children = tuple((key(name), getattr(self, name)) for name in ("leaves", "taken", "blend"))
        return children, making.Names(self.names)

    @classmethod
    def tree_unflatten(cls, unseen: making.Names, children: Any) -> "Bank":
        """The inverse of `tree_flatten_with_keys`; what it was made of is not there any more."""
        new = object.__new__(cls)
        new.leaves, new.taken, new.blend = children
        new.names, new._origin = unseen.names, None
        return new

    def _blended(self, params: Any, strengths: Array) -> Any:
        """The params with all members attached at a row's strengths."""
        members = self.blend if self._origin is None else self._origin.members
        layout = None if self._origin is None else self._origin.layout
        there = [(i, name) for i, name in enumerate(self.names) if name is not None]
        ordered = members and {name: members[name] for _, name in there}
        each = [strengths[i] for i, _ in there]
        return calls.attached(params, ordered, each, layout, self.leaves)

    def _fill(self, base: Any, numbers: Mapping[int, Member], layout: Any, room: int) -> None:
        """Its arrays, made of members by their numbers."""

        def slots(count: int) -> int:
            return -(-count * room // max(len(numbers), 1))

        self.leaves = making.made(base, numbers, layout, slots)
        self.taken = jnp.asarray(np.isin(np.arange(room), list(numbers)))

    def _with(
        self,
        origin: making.Origin,
        members: dict[str, Member],
        number: int,
        names: list[str | None],
    ) -> "Bank":
        """A bank with a member of this number exchanged, or new."""
        fitting = self._fitting(origin, members[names[number] or ""], number)
        new = self._new(self.leaves, self.taken.at[number].set(True, mode="drop"), members, names)
        if fitting is None:
            room = self.capacity if number < self.capacity else 2 * number
            numbers = {i: members[name] for i, name in enumerate(names) if name is not None}
            new._fill(origin.base, numbers, origin.layout, room)
        else:
            new.leaves = fitting
        return new

    def _fitting(
        self, origin: making.Origin, member: Member, number: int
    ) -> tuple[Kept, ...] | None:
        """The leaves with a member in slots that are free; None if there are none for it."""
        if number >= self.capacity:
            return None
        new = making.of_member(origin.base, member, origin.layout)
        leaves = {leaf.name: leaf.freed(number) for leaf in self.leaves}
        for name, leaf in new.items():
            there = leaves[name].put(number, leaf) if name in leaves else None
            if there is None:
                return None
            leaves[name] = there
        return tuple(leaves.values())

    def _new(
        self, leaves: Any, taken: Array, members: dict[str, Member], names: list[str | None]
    ) -> "Bank":
        origin = self._made_of("change")
        new = object.__new__(Bank)
        new.leaves, new.taken, new.names = leaves, taken, tuple(names)
        new.blend = None if self.blend is None else members
        new._origin = replace(origin, members=members)
        return new

    def _number(self, name: str, what: str) -> int:
        if name in self.names and name is not None:
            return self.names.index(name)
        there = ", ".join(repr(old) for old in self.names if old is not None) or "none"
        raise AdapterError(f"Bank.{what}: no member {name!r}. The bank has {there}.")

    def _made_of(self, what: str) -> making.Origin:
        if self._origin is None:
            raise UnsupportedError(
                f"Bank.{what} of a bank that came out of a transformation of pytrees, which keeps "
                "its arrays alone. Do it with the bank that went in."
            )
        return self._origin
