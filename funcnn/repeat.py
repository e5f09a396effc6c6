"""Many equal blocks one after another, as one loop: a deep network whose program does not grow with its depth."""

import dataclasses

import jax
from jax import lax

from funcnn.compose import Part, check_layers, init_at, out_shape_at
from funcnn.layer import Key, Layer, LayerError, Params, Shape, check_count, check_in_shape, describe_params, fold

BLOCK = "block"  # the name of the one block that stands for all, in paths


@dataclasses.dataclass(frozen=True)
class Repeat(Layer):
    """n equal blocks, each with parameters of its own: z^{k+1} = block(params_k, z^k), k = 0, ..., n - 1.

    The same function as `Serial(*[block] * n)`, as one `lax.scan`, so that the program and the time to compile it do
    not grow with n. What its backward pass keeps is for `backprop.saving` to say.

    Args:
        block: a layer or network whose outputs have the shape of its inputs. Its path is "block", for all n.
        n: how many.

    Returns of `init`: the block's parameters, each array with a first axis of length n.

    Raises:
        LayerError: the block changes the shape, or the parameters are not those of n blocks.

    Example:
        >>> import jax, jax.numpy as jnp, funcnn as fnn
        >>> net = fnn.Serial(fnn.Dense(8), fnn.Repeat(fnn.Serial(fnn.Dense(8), fnn.Relu()), 50), fnn.Dense(2))
        >>> params = net.init(jax.random.key(0), (3,))
        >>> params[1][0]["w"].shape, net.apply(params, jnp.zeros((5, 3))).shape
        ((50, 8, 8), (5, 2))
    """

    block: Layer
    n: int

    def __post_init__(self) -> None:
        check_layers("Repeat", (self.block,))
        check_count(self, "n", self.n)

    def init(self, key: Key, in_shape: Shape) -> Params:
        self.out_shape(in_shape)
        keys = jax.vmap(lambda k: jax.random.fold_in(key, k))(jax.numpy.arange(self.n))
        return jax.vmap(lambda k: init_at(BLOCK, self.block, k, in_shape))(keys)

    def out_shape(self, in_shape: Shape) -> Shape:
        in_shape = check_in_shape(in_shape)
        out_shape = out_shape_at(BLOCK, self.block, in_shape)
        if out_shape != in_shape:
            raise LayerError(
                f"{self!r} repeats a block whose outputs have the shape of its inputs, and this one makes {out_shape} "
                f"of {in_shape}"
            )
        return out_shape

    def multiply_adds(self, in_shape: Shape) -> int:
        return self.n * self.block.multiply_adds(in_shape)

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        self.check(params)

        def one(z: jax.Array, numbered: tuple[jax.Array, Params]) -> tuple[jax.Array, None]:
            k, own = numbered
            return self.like_input(self.part(own).apply(z, fold(key, k) if train else None, train), z), None

        return lax.scan(one, x, (self.numbers(), params))[0]

    def part(self, params: Params) -> Part:
        """One block with its parameters."""
        return Part(None, BLOCK, self.block, params)

    def numbers(self) -> jax.Array:
        """The blocks' numbers, which are folded into the key (n,)."""
        return jax.numpy.arange(self.n)

    def like_input(self, y: jax.Array, x: jax.Array) -> jax.Array:
        """y; raises unless it has the shape and dtype of x, which the next block is made for."""
        if y.shape != x.shape or y.dtype != x.dtype:
            raise LayerError(
                f"{self!r} repeats a block whose outputs are like its inputs, and this one makes {y.dtype}{y.shape} of "
                f"{x.dtype}{x.shape}"
            )
        return y

    def check(self, params: Params) -> None:
        """Raises unless each array of the parameters has a first axis of length n."""
        leaves = jax.tree.leaves(params)
        if any(jax.numpy.shape(leaf)[:1] != (self.n,) for leaf in leaves):
            raise LayerError(
                f"{self!r} needs the parameters of its block with a first axis of length {self.n} in each array, got "
                f"{describe_params(params)}; are they another network's? Make them with net.init(key, x.shape[1:])"
            )
