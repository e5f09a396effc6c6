"""Where arrays live on a mesh of devices: the batch split over one axis, the parameters as you say.

On one device all of this does nothing. On a mesh, one rule says which parameters a step computes with: those that are
split over the *batch's* axis are put together for the step (and their gradients taken apart again), which saves memory
and not work; those that are split over another axis stay split, and the products are computed in parts.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from funcnn.layer import Params

Specs = Any  # a pytree of PartitionSpec, one for each parameter
ParamSharding = Specs | Callable[[Params, Mesh], Specs]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where batches, parameters and optimizer state live.

    Attributes:
        mesh: the devices; None: one device.
        axis: the mesh's axis that a batch is split over.
        params: one spec for each leaf of the parameters.
        opt_state: one spec for each leaf of the optimizer's state.
    """

    mesh: Mesh | None = None
    axis: str = ""
    params: tuple[P, ...] = ()
    opt_state: tuple[P, ...] = ()

    @property
    def explicit(self) -> bool:
        """Whether shardings are part of the arrays' types."""
        return self.mesh is not None and AxisType.Explicit in self.mesh.axis_types

    def take(self, array: jax.Array, index: jax.Array) -> jax.Array:
        """The rows `index` of an array that every device has; each device takes its part of them."""
        if self.mesh is None:
            return array.at[index].get(mode="promise_in_bounds")
        index = self.put(index, P(self.axis))
        if self.explicit:
            return array.at[index].get(mode="promise_in_bounds", out_sharding=P(self.axis))
        return self.batch(array.at[index].get(mode="promise_in_bounds"))

    def batch(self, array: jax.Array) -> jax.Array:
        """An array whose first axis is the examples, split over the devices; as it is where they do not divide it."""
        if self.mesh is None or array.shape[0] % self.mesh.shape[self.axis]:
            return array
        return self.put(array, P(self.axis))

    def automatic(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function `(key, batch) -> batch`, for which shardings are not part of types; the batch keeps its own."""
        if not self.explicit:
            return function

        def inside(key: jax.Array, batch: Any) -> Any:
            places = jax.tree.map(lambda array: jax.typeof(array).sharding, batch)
            automatic: Any = jax.sharding.auto_axes(function, out_sharding=places)
            return automatic(key, batch)

        return inside

    def gather(self, params: Params) -> Params:
        """The parameters that a step computes with: whole along the batch's axis."""
        return self._place(params, tuple(without(spec, self.axis) for spec in self.params))

    def scatter(self, tree: Params) -> Params:
        """Parameters or gradients where the parameters live."""
        return self._place(tree, self.params)

    def scatter_state(self, opt_state: Any) -> Any:
        """The optimizer's state where it lives."""
        return self._place(opt_state, self.opt_state)

    def put(self, array: jax.Array, spec: P) -> jax.Array:
        """A traced array with this sharding."""
        assert self.mesh is not None
        if self.explicit:
            return jax.reshard(array, spec)
        return jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, spec))

    def _place(self, tree: Any, specs: tuple[P, ...]) -> Any:
        if self.mesh is None:
            return tree
        leaves, treedef = jax.tree.flatten(tree)
        placed = [self.put(leaf, spec) for leaf, spec in zip(leaves, specs, strict=True)]
        return jax.tree.unflatten(treedef, placed)

    def put_chunk(self, arrays: tuple[Any, ...]) -> tuple[jax.Array, ...]:
        """Host arrays (steps, batch_size, ...) on the devices; of several processes each gives its part of a batch."""
        if self.mesh is None:
            return tuple(map(jnp.asarray, arrays))
        divides = arrays[0].shape[1] * jax.process_count() % self.mesh.shape[self.axis] == 0
        sharding = NamedSharding(self.mesh, P(None, self.axis) if divides else P())
        if jax.process_count() == 1:
            return tuple(jax.device_put(array, sharding) for array in arrays)
        return tuple(jax.make_array_from_process_local_data(sharding, array) for array in arrays)

    def active(self) -> contextlib.AbstractContextManager[Any]:
        """The context that programs on the mesh are traced in."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def device_put(self, tree: Any, specs: tuple[P, ...] | None = None) -> Any:
        """Concrete arrays, put where they belong (None: on every device); of several processes each gives the whole."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        leaves, treedef = jax.tree.flatten(tree)
        specs = (P(),) * len(leaves) if specs is None else specs
        put = [_device_put(leaf, NamedSharding(self.mesh, s)) for leaf, s in zip(leaves, specs, strict=True)]
        return jax.tree.unflatten(treedef, put)


def place(
    mesh: Mesh | None, axis: str | None, sharding: ParamSharding | None, params: Params, optimizer: Any
) -> Placement:
    """The placement of a run on `mesh`, checked against the shapes of the parameters."""
    if mesh is None:
        if axis is not None or sharding is not None:
            raise TypeError("batch_axis and param_sharding are for training on a mesh: pass mesh=jax.make_mesh(...)")
        return Placement()
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh is a mesh of devices, as jax.make_mesh gives it, got {mesh!r}")
    if len(set(mesh.axis_types)) > 1 or AxisType.Manual in mesh.axis_types:
        raise ValueError(f"the mesh's axes are all Auto or all Explicit, got {mesh.axis_types}")
    axis = str(mesh.axis_names[0]) if axis is None else axis
    if axis not in mesh.shape:
        raise ValueError(f"batch_axis is one of the mesh's axes {mesh.axis_names}, got {axis!r}")
    specs = sharding(params, mesh) if callable(sharding) else sharding
    if specs is None or isinstance(specs, P):  # one for all
        specs = jax.tree.map(lambda _, spec=specs: spec or P(), params)
    paths, placed = (
        [path for path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, P))]
        for tree in (params, specs)
    )
    if odd := [jax.tree_util.keystr(path) for path in [*paths, *placed] if (path in paths) != (path in placed)]:
        raise ValueError(f"param_sharding has one jax.P(...) for each parameter, or one for all; alone: {odd}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        _check_spec(mesh, jax.tree_util.keystr(path), leaf, _at(specs, path))
    leaves = tuple(jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, P)))
    return Placement(mesh, axis, leaves, _state_specs(jax.eval_shape(optimizer.init, params), params, leaves))


def _state_specs(state: Any, params: Params, specs: tuple[P, ...]) -> tuple[P, ...]:
    """The spec of each leaf of an optimizer's state: where it is a counterpart of a parameter, that parameter's.

    A counterpart has the parameter's shape, at a path that ends with the parameter's.
    """
    known = list(zip(jax.tree_util.tree_leaves_with_path(params), specs, strict=True))

    def spec_of(path: tuple[Any, ...], leaf: Any) -> P:
        for (own, parameter), spec in known:
            if leaf.shape == parameter.shape and path[len(path) - len(own) :] == own:
                return spec
        return P()

    return tuple(spec_of(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state))


def fully_sharded(axis: str) -> Callable[[Params, Mesh], Specs]:
    """Each parameter split over a mesh axis, along its longest dimension that the devices divide.

    With the batch's own axis every device keeps a part of parameters and optimizer state, which are put together for
    each step: less memory, more communication.

    Args:
        axis: the mesh's axis.

    Returns:
        A function for `fit(..., param_sharding=...)`. What cannot be divided is on every device.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> fnn.train.fully_sharded("data")({"w": jnp.zeros((4, 6))}, mesh)
        {'w': P(None, 'data')}

    Source: Rajbhandari et al., ZeRO (2020), stage 3.
    """

    def specs(params: Params, mesh: Mesh) -> Specs:
        def spec(leaf: jax.Array) -> P:
            fits = [d for d in range(leaf.ndim) if leaf.shape[d] % mesh.shape[axis] == 0]
            if not fits:
                return P()
            longest = max(fits, key=lambda d: leaf.shape[d])
            return P(*(axis if d == longest else None for d in range(longest + 1)))

        _check_axis(mesh, axis)
        return jax.tree.map(spec, params)

    return specs


def by_features(axis: str) -> Callable[[Params, Mesh], Specs]:
    """Pairs of dense layers split over a mesh axis: the first by columns (its units), the second by rows (its inputs).

    h = f(x w1) is split by units, and z = h w2 is a sum of one part from each device: one all-reduce for each pair.

    Args:
        axis: the mesh's axis, another than the batch's.

    Returns:
        A function for `fit(..., param_sharding=...)`. What stands between a pair with one number a unit (a bias, the
        slopes of a `Prelu`) is split with the units; a last layer without a partner is on every device. The pairs are
        found by the order of the parameters, which in a `Serial` is that of the layers; in a `Graph`, where it is that
        of the names, the result is as right, and fewer layers may be split: give it a pytree of `jax.P` instead.

    Example:
        >>> import jax, funcnn as fnn
        >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> net = fnn.Serial(fnn.Dense(4), fnn.Relu(), fnn.Dense(3))
        >>> specs = fnn.train.by_features("model")(net.init(jax.random.key(0), (2,)), mesh)
        >>> specs[0]["w"], specs[2]["w"]
        (P(None, 'model'), P('model',))

    Source: Shoeybi et al., Megatron-LM (2019), section 3.
    """

    def specs(params: Params, mesh: Mesh) -> Specs:
        _check_axis(mesh, axis)
        leaves, treedef = jax.tree.flatten(params)
        parents = [path[:-1] for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        layers = [i for i, leaf in enumerate(leaves) if leaf.ndim == 2]  # the weights of dense layers, in order
        chosen = [P()] * len(leaves)
        pairs = zip(layers[::2], layers[1::2], strict=False)
        for first, second in pairs:
            units = leaves[first].shape[1]
            if units != leaves[second].shape[0] or units % mesh.shape[axis]:
                continue
            chosen[first], chosen[second] = P(None, axis), P(axis)
            # From the first leaf of the first layer, whose bias stands before its weights, up to the second layer's.
            for i in range(parents.index(parents[first]), second):
                if leaves[i].shape == (units,) and parents[i] != parents[second]:
                    chosen[i] = P(axis)
        return jax.tree.unflatten(treedef, chosen)

    return specs


def without(spec: P, axis: str) -> P:
    """The spec of an array that is not split over `axis`."""

    def rest(entry: Any) -> Any:
        if isinstance(entry, tuple):
            kept = tuple(name for name in entry if name != axis)
            return kept or None
        return None if entry == axis else entry

    return P(*map(rest, spec))


def _device_put(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.device_put(leaf, sharding)
    # Random keys cannot be put on other processes' devices as they are, but the integers that they are made of can.
    data = jax.device_put(jax.random.key_data(leaf), sharding)
    return jax.jit(jax.random.wrap_key_data, static_argnames="impl")(data, impl=jax.random.key_impl(leaf))


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for entry in path:
        tree = tree[entry.key if hasattr(entry, "key") else entry.idx]
    return tree


def _check_axis(mesh: Mesh, axis: str) -> None:
    if axis not in mesh.shape:
        raise ValueError(f"the mesh has the axes {mesh.axis_names}, and no {axis!r}")


def _check_spec(mesh: Mesh, name: str, leaf: jax.Array, spec: Any) -> None:
    if not isinstance(spec, P):
        raise TypeError(f"params{name} needs a jax.P(...) in param_sharding, got {spec!r}")
    if len(spec) > leaf.ndim:
        raise ValueError(f"params{name} has shape {leaf.shape}, and its sharding {spec} has {len(spec)} entries")
    for size, entry in zip(leaf.shape, spec, strict=False):
        names = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
        parts = 1
        for axis in names:
            _check_axis(mesh, axis)
            parts *= mesh.shape[axis]
        if size % parts:
            raise ValueError(f"params{name} has shape {leaf.shape}, which {spec} cannot split into {parts} equal parts")
