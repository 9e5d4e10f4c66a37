"""A program run on weights whose base and map are apart.

The program is a jaxpr. Equations that no such weight enters are run as they are, in one piece, so
that whatever JAX knows (custom derivatives, kernels, collectives) stays as it was. Where one
enters, the table at the end has a rule for its primitive; without a rule, or where the rule gives
none, the weight is made dense there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.extend import core

from jaxmix.placement.quantized import is_quantized
from jaxmix.unmerged import lookups, products, ragged, views
from jaxmix.unmerged.weight import Weight

__all__ = ["run"]

Values = list[Any]


def run(program: core.ClosedJaxpr, args: Sequence[Any]) -> Values:
    """The outputs of a program.

    Args:
        program: what was traced with an array for each weight.
        args: arrays and weights.

    Returns:
        Its outputs, weights among them where one is handed through.
    """
    jaxpr = program.jaxpr
    frame = _Frame(jaxpr, dict(zip(jaxpr.constvars, program.consts, strict=True)), _last(jaxpr))
    frame.values.update(zip(jaxpr.invars, args, strict=True))
    waiting: list[Any] = []
    for number, eqn in enumerate(jaxpr.eqns):
        if not any(isinstance(frame.read(atom), Weight) for atom in eqn.invars):
            waiting.append(eqn)
            continue
        frame.evaluate(waiting, number)
        waiting = []
        rule = _RULES.get(eqn.primitive.name)
        outs = rule and rule(eqn.params, [frame.read(atom) for atom in eqn.invars])
        if outs is None:
            for atom in eqn.invars:
                if isinstance(value := frame.read(atom), Weight):
                    frame.values[atom] = value.dense()
            frame.evaluate([eqn], number)
        else:
            frame.values.update(zip(eqn.outvars, outs, strict=True))
    frame.evaluate(waiting, len(jaxpr.eqns))
    return [frame.read(atom) for atom in jaxpr.outvars]


@dataclass(frozen=True)
class _Frame:
    """A jaxpr, the values of its variables, and the last equation that takes each."""

    jaxpr: core.Jaxpr
    values: dict[Any, Any]
    last: dict[Any, int]

    def read(self, atom: Any) -> Any:
        """What an equation takes; None for what waits to be evaluated."""
        return atom.val if isinstance(atom, core.Literal) else self.values.get(atom)

    def evaluate(self, eqns: Sequence[Any], number: int) -> None:
        """Run equations which no weight enters, all that come before the one of this number."""
        if not eqns:
            return
        made = dict.fromkeys(var for eqn in eqns for var in eqn.outvars)
        used = [atom for eqn in eqns for atom in eqn.invars if not isinstance(atom, core.Literal)]
        taken = [var for var in dict.fromkeys(used) if var not in made]
        kept = [var for var in made if self.last.get(var, -1) >= number]
        effects = frozenset().union(*(eqn.effects for eqn in eqns))
        piece = self.jaxpr.replace(
            constvars=[], invars=taken, outvars=kept, eqns=list(eqns), effects=effects
        )
        outs = core.jaxpr_as_fun(core.ClosedJaxpr(piece, []))(*(self.values[v] for v in taken))
        self.values.update(zip(kept, outs, strict=True))


def _last(jaxpr: core.Jaxpr) -> dict[Any, int]:
    """The number of the last equation that takes each variable; past the end for outputs."""
    taken = [*((n, a) for n, eqn in enumerate(jaxpr.eqns) for a in eqn.invars)]
    taken += [(len(jaxpr.eqns), atom) for atom in jaxpr.outvars]
    return {atom: number for number, atom in taken if not isinstance(atom, core.Literal)}


def _dense(values: Sequence[Any]) -> Values:
    return [value.dense() if isinstance(value, Weight) else value for value in values]


# ---------------------------------------------------------------- programs inside


def _called(params: Any, values: Values) -> Values:
    return run(params["jaxpr"], values)


def _checkpointed(params: Any, values: Values) -> Values | None:
    """`jax.checkpoint`: what is saved and what is made again is its own affair."""
    body = partial(run, core.ClosedJaxpr(params["jaxpr"], []))
    again = jax.checkpoint(
        lambda values: _dense(body(values)),
        prevent_cse=params["prevent_cse"],
        policy=params["policy"],
    )
    return again(values)


def _scanned(params: Any, values: Values) -> Values | None:
    """`jax.lax.scan`: a stack is scanned layer by layer, base and map."""
    if "num_consts" not in params:
        return None
    first, second = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, xs = values[:first], _dense(values[first:second]), values[second:]
    xs = [x if not isinstance(x, Weight) or _stacked_first(x) else x.dense() for x in xs]

    def body(carry: Values, xs: Values) -> tuple[Values, Values]:
        outs = _dense(run(params["jaxpr"], [*consts, *carry, *xs]))
        return outs[: len(carry)], outs[len(carry) :]

    known = {
        k: params[k] for k in ("reverse", "length", "unroll", "_split_transpose") if k in params
    }
    carry, ys = lax.scan(body, carry, xs, **known)
    return [*carry, *ys]


def _stacked_first(weight: Weight) -> bool:
    return weight.axes[2] == 0


def _looped(params: Any, values: Values) -> Values:
    """`jax.lax.while_loop`."""
    first = params["cond_nconsts"]
    second = first + params["body_nconsts"]
    ahead, inside, carry = values[:first], values[first:second], _dense(values[second:])

    def go_on(carry: Values) -> Any:
        return run(params["cond_jaxpr"], [*ahead, *carry])[0]

    def body(carry: Values) -> Values:
        return _dense(run(params["body_jaxpr"], [*inside, *carry]))

    return lax.while_loop(go_on, body, carry)


def _branched(params: Any, values: Values) -> Values:
    """`jax.lax.cond` and `jax.lax.switch`."""
    which, *rest = values
    branches = [lambda rest, one=one: _dense(run(one, rest)) for one in params["branches"]]
    return lax.switch(which, branches, rest)


# ---------------------------------------------------------------- one weight in, or two


def _product(params: Any, values: Values) -> Values:
    return [products.dot_general(*values, **params)]


def _convolved(params: Any, values: Values) -> Values | None:
    x, weight = values
    if isinstance(x, Weight) or not isinstance(weight, Weight):
        return None
    out = lookups.conv(x, weight, **params)
    return None if out is None else [out]


def _ragged(params: Any, values: Values) -> Values | None:
    x, weight, sizes = values
    if isinstance(x, Weight) or not isinstance(weight, Weight) or isinstance(sizes, Weight):
        return None
    out = ragged.ragged_dot(jax.numpy.asarray(x), weight, sizes, **params)
    return None if out is None else [out]


def _looked_up(params: Any, values: Values) -> Values | None:
    weight, at = values
    if not isinstance(weight, Weight) or isinstance(at, Weight):
        return None
    out = lookups.gather(weight, at, **params)
    return None if out is None else [out]


def _transposed(params: Any, values: Values) -> Values:
    return [values[0].moved(params["permutation"])]


def _cast(params: Any, values: Values) -> Values | None:
    dtype = params["new_dtype"]
    return [values[0].cast(dtype)] if jax.numpy.issubdtype(dtype, jax.numpy.floating) else None


def _reshaped(params: Any, values: Values) -> Values | None:
    if len(values) > 1 or params.get("dimensions") is not None:
        return None
    return _one(views.reshaped(values[0], params["new_sizes"]))


def _broadcast(params: Any, values: Values) -> Values | None:
    """Only where it adds axes of one."""
    sizes, axes = params["shape"], params["broadcast_dimensions"]
    if len(values) > 1 or [sizes[k] for k in axes] != list(values[0].shape):
        return None
    if any(sizes[k] != 1 for k in range(len(sizes)) if k not in axes):
        return None
    return _one(views.reshaped(values[0], sizes))


def _squeezed(params: Any, values: Values) -> Values | None:
    weight, axes = values[0], params["dimensions"]
    if tuple(axes) == (weight.axes[2],):
        return _one(views.unstacked(weight))
    sizes = [n for k, n in enumerate(weight.shape) if k not in axes]
    return _one(views.reshaped(weight, sizes))


def _sliced(params: Any, values: Values) -> Values | None:
    if any(step != 1 for step in params["strides"] or ()):
        return None
    starts, ends = params["start_indices"], params["limit_indices"]
    sizes = [end - start for start, end in zip(starts, ends, strict=True)]
    return _one(views.sliced(values[0], starts, sizes))


def _dynamically_sliced(params: Any, values: Values) -> Values | None:
    weight, *starts = values
    if not isinstance(weight, Weight):
        return None
    return _one(views.sliced(weight, starts, params["slice_sizes"]))


def _kept(params: Any, values: Values) -> Values:
    """What changes no number."""
    return values


def _placed(params: Any, values: Values) -> Values | None:
    """`jax.lax.with_sharding_constraint`, of the base."""
    weight = values[0]
    if is_quantized(weight.base):
        return None
    return [replace(weight, base=lax.with_sharding_constraint(weight.base, params["sharding"]))]


def _one(weight: Weight | None) -> Values | None:
    return None if weight is None else [weight]


_RULES: dict[str, Callable[[Any, Values], Values | None]] = {
    "jit": _called,
    "pjit": _called,
    "remat2": _checkpointed,
    "checkpoint": _checkpointed,
    "scan": _scanned,
    "while": _looped,
    "cond": _branched,
    "dot_general": _product,
    "ragged_dot_general": _ragged,
    "conv_general_dilated": _convolved,
    "gather": _looked_up,
    "transpose": _transposed,
    "convert_element_type": _cast,
    "reshape": _reshaped,
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeezed,
    "slice": _sliced,
    "dynamic_slice": _dynamically_sliced,
    "copy": _kept,
    "copy_p": _kept,
    "sharding_constraint": _placed,
}
