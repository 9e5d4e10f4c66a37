"""`Bank`: runs many mixes in one batch, one per row."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int

from jaxmix.adapter import Adapter
from jaxmix.bank import assignment, building, calls
from jaxmix.bank.blending import attached
from jaxmix.bank.leaves import BankLeaf
from jaxmix.bank.maps import SlotCounts
from jaxmix.errors import AdapterError, UnsupportedError
from jaxmix.mixing import Mix
from jaxmix.placement.layout import Layout
from jaxmix.unmerged.running import check_how
from jaxmix.unmerged.weight import How

__all__ = ["Bank"]

Member = Adapter | Mix

_CHILDREN = ("leaves", "owners", "broken", "taken", "blend")


@jax.tree_util.register_pytree_with_keys_class
class Bank:
    """Many mixes in one batch: each row has its own mix, and all rows share the base's product.

    For each row, ``bank(fn)(params, batch, who)`` returns ``fn(compose(params, mix), row)``, where
    ``mix`` is the row's own. Each weight computes ``y = L((x R) Wᵀ) + x Δᵀ``. The base's product is
    shared by the whole batch. On CPU each row reads its own L, R and Δ once; on accelerators all
    rows share products with all members' operators, and a mask keeps each row's own. A convolution,
    and a lookup with an L that is not diagonal, makes each row's weight dense, with a warning.

    A bank is a pytree. Pass it to a jitted function as an argument: assigning rows to other
    members, and replacing, removing or adding members in free slots, does not trace the function
    again. The maps are computed when the bank is made, so call it with the same params.

    Args:
        members: ``{name: adapter or mix}``. The order matters if rows mix several members.
        params: The base, any pytree of weights.
        layout: Where the sites are in the tree, as in `jaxmix.compose`.
        capacity: The number of members that fit; by default the next power of two. Each structure
            of operators gets slots in proportion: with 8 members and a capacity of 16, a structure
            that 3 of them have gets 6 slots.
        blend: Whether the members are part of the pytree. A bank that is an argument of a jitted
            function needs this to mix members that do more than add, at a strength for each.
            Replacing a member then traces the function again.

    Raises:
        AdapterError: If `members` is not a mapping of names to adapters and mixes, or the capacity
            is less than their number.
        LayoutError: As `jaxmix.compose`; on a call, if the params are not those of the bank.
        ShapeError: As `jaxmix.compose`; on a call, if the batch's leaves differ in their rows.

    Example:
        >>> from jaxmix.families import LoRA
        >>> def lora(k):
        ...     return Adapter({"proj": LoRA(jnp.full((1, 3), k), jnp.ones((2, 1)), 1.0)})
        >>> params = {"proj.weight": jnp.zeros((2, 3))}
        >>> bank = Bank({"fr": lora(1.0), "de": lora(2.0)}, params)
        >>> run = bank(lambda params, x: x @ params["proj.weight"].T)
        >>> run(params, jnp.ones((3, 3)), ["de", None, "fr"])[:, 0].tolist()
        [6.0, 0.0, 3.0]
        >>> run(params, jnp.ones((1, 3)), jnp.array([[1.0, 0.5]]))[:, 0].tolist()
        [6.0]

    Source: PEFT's ``adapter_names`` for LoRA; Punica and S-LoRA, https://arxiv.org/abs/2310.18547
    and https://arxiv.org/abs/2311.03285, for grouped products.
    """

    leaves: tuple[BankLeaf, ...]
    owners: Int[Array, "stacks slots"]
    broken: Bool[Array, "stacks slots"]
    taken: Bool[Array, " capacity"]
    blend: dict[str, Member] | None
    names: tuple[str | None, ...]
    _origin: building.Origin | None

    def __init__(
        self,
        members: Mapping[str, Member],
        params: Any,
        *,
        layout: Layout | str | None = None,
        capacity: int | None = None,
        blend: bool = False,
    ):
        checked: dict[str, Any] = building.check_members(members, "Bank")
        capacity = building.check_capacity(capacity, len(checked))
        base = building.untied_base(params, checked, layout)
        self._fill(base, dict(enumerate(checked.values())), layout, capacity)
        self.blend = checked if blend else None
        self.names = tuple(checked)
        self._origin = building.Origin(base, checked, layout)

    capacity = property(lambda self: self.taken.shape[0], doc="The number of members that fit.")

    def __call__(self, fn: Callable[..., Any], how: How = "auto") -> Callable[[Any, Any, Any], Any]:
        """Transforms a function of params and a batch to one in which each row has its own mix.

        Args:
            fn: ``(params, batch) -> result``, any function that JAX can trace. Rows are the first
                axis of every leaf of the batch and of the result. It runs under `jax.vmap` on one
                row at a time, as a batch of one.
            how: ``"auto"`` warns (`jaxmix.errors.DenseWeightWarning`) if each row's weight is made
                dense because a use has no factored form; ``"factored"`` refuses such a use, and
                ``"dense"`` makes each row's weight dense at each use, without a warning.

        Returns:
            ``(params, batch, who) -> result``, where ``who`` assigns rows to members. It is a list
            of names, with None for the base; or an array of members' numbers (rows,), with -1 for
            the base; or an array of strengths (rows, members); or a list of ``{name: strength}``.
            With strengths, each row's mix contains all members in order, each at its strength. A
            traced number that belongs to no member gives NaN.

        Raises:
            AdapterError: If ``how`` is invalid.
        """
        check_how(how, "Bank")

        @wraps(fn)
        def run(params: Any, batch: Any, who: Any) -> Any:
            pick = self.who(who)
            slots = calls.Slots(self.leaves, self.owners, self.broken, self.taken)
            return calls.run(fn, params, batch, pick, slots, self._blended, how)

        return run

    def who(self, who: Any) -> Any:
        """Converts an assignment of rows to members to an array, to pass to a jitted function.

        Args:
            who: The assignment in any form that a call accepts.

        Returns:
            Members' numbers (rows,) int32, or strengths (rows, members).

        Raises:
            AdapterError: If the form is invalid, or a name or number belongs to no member.
            UnsupportedError: If names are used inside a traced function that has the bank as its
                argument.

        Example:
            >>> bank = Bank({"fr": Adapter({}), "de": Adapter({})}, {})
            >>> bank.who(["de", None]).tolist()
            [1, -1]
        """
        return assignment.resolve(who, self.names, isinstance(self.taken, Tracer))

    def add(self, name: str, member: Member) -> "Bank":
        """Returns a bank with another member.

        Args:
            name: The new member's name.
            member: An adapter or a mix.

        Returns:
            A new bank. Jitted functions are not traced again if the leaves have free slots for the
            member's operators. Otherwise the stacks are rebuilt, with twice the capacity if full.

        Raises:
            AdapterError: If the name is taken, or `member` is not an adapter or a mix.
            UnsupportedError: If the bank is the result of a pytree transformation.
        """
        building.check_members({name: member}, "Bank.add")
        if name in self.names:
            raise AdapterError(
                f"Bank.add: the bank already has a member {name!r}. Use bank.replace(…)."
            )
        origin = self._require_origin("add")
        free = [i for i, old in enumerate(self.names) if old is None]
        number = free[0] if free else len(self.names)
        names = [*self.names, None] if number == len(self.names) else list(self.names)
        names[number] = name
        return self._with(origin, {**origin.members, name: member}, number, names)

    def replace(self, name: str, member: Member) -> "Bank":
        """Returns a bank in which the member of this name is replaced; see `add`.

        Raises:
            AdapterError: If there is no such member, or `member` is not an adapter or a mix.
        """
        building.check_members({name: member}, "Bank.replace")
        origin = self._require_origin("replace")
        number = assignment.number_of(name, self.names, "replace")
        return self._with(origin, {**origin.members, name: member}, number, list(self.names))

    def remove(self, name: str) -> "Bank":
        """Returns a bank without a member; the other members keep their numbers.

        Raises:
            AdapterError: If there is no such member.
        """
        origin = self._require_origin("remove")
        number = assignment.number_of(name, self.names, "remove")
        names = [None if old == name else old for old in self.names]
        members = {key: old for key, old in origin.members.items() if key != name}
        taken = self.taken.at[number].set(False)
        return self._new(self.leaves, self._released(number), taken, members, names)

    def explain(self) -> str:
        """Lists each leaf with its stacks and their slots, or the reason why it is whole."""
        return "\n".join(leaf.described() for leaf in self.leaves) or "no leaf is changed"

    def __repr__(self) -> str:
        present = [name for name in self.names if name is not None]
        shown = ", ".join([*present[:4], *(["…"] if len(present) > 4 else [])])
        counts = f"{len(present)} at {len(self.leaves)} leaves, room for {self.capacity}"
        return f"Bank of {counts} ({shown})"

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], building.MemberNames]:
        """Returns the arrays, and the names, which comparisons of structures ignore."""
        key = jax.tree_util.GetAttrKey
        children = tuple((key(name), getattr(self, name)) for name in _CHILDREN)
        return children, building.MemberNames(self.names)

    @classmethod
    def tree_unflatten(cls, names: building.MemberNames, children: Any) -> "Bank":
        """Inverts `tree_flatten_with_keys`; the result does not know what it was built from."""
        new = object.__new__(cls)
        new.leaves, new.owners, new.broken, new.taken, new.blend = children
        new.names, new._origin = names.names, None
        return new

    def _blended(self, params: Any, strengths: Array) -> Any:
        """Returns the params with all members attached at a row's strengths."""
        members = self.blend if self._origin is None else self._origin.members
        layout = None if self._origin is None else self._origin.layout
        present = [(i, name) for i, name in enumerate(self.names) if name is not None]
        ordered = members and {name: members[name] for _, name in present}
        return attached(params, ordered, [strengths[i] for i, _ in present], layout, self.leaves)

    def _fill(self, base: Any, numbers: Mapping[int, Member], layout: Any, capacity: int) -> None:
        """Builds the arrays from the members by their numbers."""
        slots = SlotCounts(capacity, len(numbers))
        self.leaves, owners = building.build_leaves(base, numbers, layout, slots)
        self.owners, self.broken = jnp.asarray(owners), building.broken_slots(self.leaves)
        self.taken = jnp.asarray(np.isin(np.arange(capacity), list(numbers)))

    def _with(
        self,
        origin: building.Origin,
        members: dict[str, Member],
        number: int,
        names: list[str | None],
    ) -> "Bank":
        """Returns a bank in which the member of this number is new."""
        taken = self.taken.at[number].set(True, mode="drop")
        new = self._new(self.leaves, self.owners, taken, members, names)
        if number < self.capacity:
            added = building.attach_member(origin.base, members[names[number] or ""], origin.layout)
            owners = np.array(self._released(number))
            leaves = building.insert_member(self.leaves, added, number, owners)
            if leaves is not None:
                new.leaves, new.owners = leaves, jnp.asarray(owners)
                new.broken = building.broken_slots(leaves)
                return new
        capacity = self.capacity if number < self.capacity else 2 * number
        numbers = {i: members[name] for i, name in enumerate(names) if name is not None}
        new._fill(origin.base, numbers, origin.layout, capacity)
        return new

    def _released(self, number: int) -> Array:
        """Returns the table of owners in which a member's slots are free."""
        return jnp.where(self.owners == number, np.int32(-1), self.owners)

    def _new(
        self,
        leaves: Any,
        owners: Array,
        taken: Array,
        members: dict[str, Member],
        names: list[str | None],
    ) -> "Bank":
        origin = self._require_origin("change")
        new = object.__new__(Bank)
        new.leaves, new.owners, new.taken, new.names = leaves, owners, taken, tuple(names)
        new.broken = self.broken
        new.blend = None if self.blend is None else members
        new._origin = replace(origin, members=members)
        return new

    def _require_origin(self, method: str) -> building.Origin:
        """Returns what the bank was built from."""
        if self._origin is None:
            raise UnsupportedError(
                f"Bank.{method}: this bank is the result of a pytree transformation and holds only "
                "arrays. Call the method on the original bank."
            )
        return self._origin
