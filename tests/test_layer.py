"""What holds for every layer: the laws of `funcnn/layer.py`, dtypes, jit, grad and vmap; and layers of one's own."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn.layer import LayerError, check_in_shape, describe_params, magnitude
from tests.problems import BATCHED, LAYERS, LayerProblem, each_layer

FLOAT32 = 1e-5  # float32, sums of a few numbers of order 1 in two orders: tens of units in the last place


def close(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, want, rtol=FLOAT32, atol=FLOAT32)


def numbers_like(tree: Any, rng: np.random.Generator) -> Any:
    """Random numbers in the place of each array or shape of `tree`: no program of JAX to compile for them."""
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), tree)


@each_layer
def test_the_two_laws_and_the_transformations(problem: LayerProblem, rng: np.random.Generator):
    """Shapes; rows do not mix; a batch is its rows, by vmap too, or has no axis or two where that has a meaning; the
    gradient is finite and of the parameters' structure; eager = jit."""
    layer, in_shape = problem
    batched = problem in BATCHED.values()
    params = numbers_like(jax.eval_shape(lambda: layer.init(jax.random.key(0), in_shape)), rng)
    x, dy = (numbers_like(np.empty((4, *s), np.float32), rng) for s in (in_shape, layer.out_shape(in_shape)))

    def summed(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = layer.apply(params, x)
        return jnp.sum(y * dy), y

    @jax.jit
    def run(params: Any, x: jax.Array) -> dict[str, Any]:
        grads, y = jax.grad(summed, argnums=(0, 1), has_aux=True)(params, x)
        return {
            "y": y,
            "keyed": layer.apply(params, x, key=jax.random.key(0)),
            "others": layer.apply(params, x.at[1:].multiply(-3)),
            "rows": jax.vmap(lambda row: layer.apply(params, row[None])[0])(x),
            "none": layer.apply(params, x[0]) if batched else y[0],
            "two": layer.apply(params, x.reshape(2, 2, *in_shape)) if batched else y.reshape(2, 2, *y.shape[1:]),
            "grads": grads,
        }

    got = run(params, x)
    y = got["y"]
    assert y.shape == (4, *layer.out_shape(in_shape))
    assert np.isfinite(y).all()
    # Without train a key changes nothing; of a loop there are two here, one of which keeps what the gradient needs.
    (close if isinstance(layer, fnn.Repeat) else np.testing.assert_array_equal)(got["keyed"], y)
    close(got["others"][0], y[0])
    if not isinstance(layer, fnn.Step):
        assert not np.allclose(got["others"][1:], y[1:], rtol=FLOAT32, atol=FLOAT32)
    close(got["rows"], y)
    close(got["none"], y[0])
    close(got["two"].reshape(y.shape), y)
    grads = got["grads"]
    assert jax.tree.structure(grads) == jax.tree.structure((params, x))
    for (path, gradient), leaf in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves((params, x)), strict=True
    ):
        assert (gradient.shape, gradient.dtype) == (leaf.shape, leaf.dtype)
        assert np.isfinite(gradient).all()
        without = isinstance(layer, fnn.Step) or "feedback" in jax.tree_util.keystr(path)  # no part in the output
        assert np.any(gradient) != without
    close(layer.apply(params, x), y)


@each_layer
@pytest.mark.parametrize("dtype_name", ["bfloat16", "float16", "float32", "float64"])
def test_dtypes_are_kept(problem: LayerProblem, dtype_name: str):
    """y and every gradient have the dtype of x and the parameters; under strict promotion, so that nothing is mixed."""
    layer, in_shape = problem
    with jax.enable_x64(dtype_name == "float64"):
        params = jax.eval_shape(lambda: layer.init(jax.random.key(0), in_shape))
        default = "float64" if dtype_name == "float64" else "float32"
        assert all((leaf.dtype, leaf.weak_type) == (default, False) for leaf in jax.tree.leaves(params))
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype_name), params)
        x = jax.ShapeDtypeStruct((4, *in_shape), dtype_name)
        for train in (False, True):

            def run(params: Any, x: jax.Array, train: bool = train) -> Any:
                def total(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
                    y = layer.apply(params, x, key=jax.random.key(0), train=train)
                    return jnp.sum(y), y

                return jax.grad(total, argnums=(0, 1), has_aux=True)(params, x)

            (dparams, dx), y = jax.eval_shape(run, params, x)
            assert {leaf.dtype.name for leaf in jax.tree.leaves((dparams, dx, y))} == {dtype_name}
            assert (y.shape, y.weak_type) == ((4, *layer.out_shape(in_shape)), False)


def test_the_tables_hold_every_layer():
    """A new layer that is not among the problems would pass every test here."""
    public = {value for value in vars(fnn).values() if isinstance(value, type) and issubclass(value, fnn.Layer)}
    bases = {fnn.Layer, fnn.Activation, fnn.Combinator}
    assert {type(problem.layer) for problem in LAYERS.values()} >= public - bases - {fnn.Cast}
    assert LAYERS.keys() >= BATCHED.keys()


@each_layer
def test_in_shape_is_the_shape_of_one_example(problem: LayerProblem, key: jax.Array):
    wrongs: Any = 3, (0,), (-1, 2), (2.0,), "ab", None
    for wrong in wrongs:
        for call in (lambda s: problem.layer.init(key, s), problem.layer.out_shape, problem.layer.multiply_adds):
            with pytest.raises(LayerError, match="in_shape is the shape of one example, a tuple of positive integers"):
                call(wrong)
    assert problem.layer.out_shape(list(problem.in_shape)) == problem.layer.out_shape(problem.in_shape)  # type: ignore[arg-type]


@each_layer
@pytest.mark.parametrize(
    "params",
    [{"v": np.zeros(3)}, [np.zeros((2, 2))], np.zeros((3, 3)), None, {"w": np.zeros((9, 9)), "b": np.zeros(9)}, "w"],
    ids=["name", "list", "array", "none", "shape", "text"],
)
def test_parameters_of_another_network(problem: LayerProblem, params: Any):
    with pytest.raises(LayerError) as caught:
        problem.layer.apply(params, jnp.zeros((2, *problem.in_shape)))
    message = str(caught.value)
    assert "net.init(key, x.shape[1:])" in message
    # Repeat's block is given one of n rows of each array, and says what that is.
    assert describe_params(params) in message or isinstance(problem.layer, fnn.Repeat)
    assert "another network's" in message


# Layers of one's own.


@dataclasses.dataclass(frozen=True)
class Scale(fnn.Layer):
    """A learned scale for each unit."""

    start: float = 1.0

    def init(self, key: jax.Array, in_shape: tuple[int, ...]) -> Any:
        return {"scale": jnp.full(in_shape, self.start)}

    def apply(self, params: Any, x: jax.Array, *, key: jax.Array | None = None, train: bool = False) -> jax.Array:
        return params["scale"][None] * x


def two_layer_init(key: jax.Array, in_shape: tuple[int, ...]) -> Any:
    return {"w": jax.random.normal(key, (*in_shape, 7)), "v": jnp.ones((7, 2))}


def two_layer(params: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["w"]) @ params["v"]


def test_a_layer_of_ones_own_stands_anywhere(key: jax.Array):
    """Its shape is found by itself, so that layers behind it know what they take."""
    net = fnn.Serial(Scale(2.0), fnn.Dense(5), Scale(), fnn.lift(two_layer_init, two_layer), fnn.Dense(3))
    assert Scale().out_shape((4, 2)) == (4, 2)
    assert net.out_shape((4,)) == (3,)
    assert repr(net.layers[:3]) == "(Scale(start=2.0), Dense(5), Scale())"
    params = net.init(key, (4,))
    assert [sorted(entry) for entry in params] == [["scale"], ["b", "w"], ["scale"], ["v", "w"], ["b", "w"]]
    x = jax.random.normal(key, (6, 4))
    h = np.asarray(x) * 2 @ np.asarray(params[1]["w"])
    y = np.tanh(h @ np.asarray(params[3]["w"])) @ np.ones((7, 2)) @ np.asarray(params[4]["w"])
    close(jax.jit(net.apply)(params, x), y)
    assert net.multiply_adds((4,)) == 4 * 5 + (5 * 7 + 7 * 2) + 2 * 3


def test_multiply_adds_counts_the_products_of_apply_alone():
    def init(key: jax.Array, in_shape: tuple[int, ...]) -> Any:
        return {"w": jnp.ones((3, 5)) @ jnp.ones((5, 4))}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return jax.jit(lambda a: jnp.tensordot(a, params["w"], 1))(jnp.tanh(x))

    assert fnn.lift(init, apply).multiply_adds((3,)) == 12
    assert fnn.Tanh().multiply_adds((3,)) == 0
    assert fnn.Maxout(4, pieces=3).multiply_adds((2, 5)) == 2 * 5 * 4 * 3
    assert fnn.Rbf(4, epsilon=1.0).multiply_adds((2, 5)) == 2 * 5 * 4


def test_lift_passes_on_what_the_function_takes(key: jax.Array):
    seen = []

    def apply(params: Any, x: jax.Array, *, train: bool, key: jax.Array | None) -> jax.Array:
        seen.append((train, key is not None))
        return x

    layer = fnn.lift(lambda key, in_shape: (), apply)
    x = jnp.zeros((1, 2))
    layer.apply((), x)
    layer.apply((), x, key=key, train=True)
    assert seen == [(False, False), (True, True)]
    assert fnn.lift(lambda key, in_shape: (), lambda params, x: x).apply((), x, key=key, train=True) is x
    assert layer == fnn.lift(layer.init_function, apply)  # type: ignore[attr-defined]
    assert hash(layer) == hash(fnn.lift(layer.init_function, apply))  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", [(None, two_layer), (two_layer_init, 3)])
def test_lift_takes_two_functions(wrong: tuple[Any, Any]):
    with pytest.raises(TypeError, match=r"lift takes two functions: lift\(init="):
        fnn.lift(*wrong)


def test_a_layer_without_init_or_apply_cannot_be_made():
    class Half(fnn.Layer):
        def init(self, key: jax.Array, in_shape: tuple[int, ...]) -> Any:
            return ()

    with pytest.raises(TypeError, match=r"abstract.*apply"):
        Half()  # type: ignore[abstract]


# Errors that are not of funcnn keep their type, and say where.


def broken(error: Exception) -> fnn.Layer:
    def apply(params: Any, x: jax.Array) -> jax.Array:
        raise error

    return fnn.lift(lambda key, in_shape: (), apply)


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), TypeError("mine"), KeyError("mine")])
def test_foreign_errors_are_noted_with_the_path(error: Exception):
    net = fnn.Serial(fnn.Tanh(), fnn.Residual(fnn.Serial(broken(error))))
    with pytest.raises(type(error), match="mine") as caught:
        net.apply(((), {"body": ((),), "shortcut": ()}), jnp.zeros((1, 2)))
    assert [note.split(":")[0] for note in caught.value.__notes__] == [
        "in layer '0'",
        "in layer 'body'",
        "in layer '1'",
    ]


def test_a_layer_error_begins_with_its_path():
    error = LayerError("no", ("1", "body", "0"))
    assert str(error) == "at '1/body/0': no"
    assert (error.path, error.message) == (("1", "body", "0"), "no")
    assert str(LayerError("no")) == "no"
    assert isinstance(error, ValueError)


def test_check_in_shape_takes_numpy_integers():
    given: Any = [np.int64(3), 2]
    assert check_in_shape(given) == (3, 2)
    assert all(type(d) is int for d in check_in_shape(given))


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ((), "()"),
        (({"w": np.zeros((2, 3), np.float32)},), "({'w': float32[2, 3]},)"),
        ([(), {"b": jnp.zeros((), jnp.bfloat16)}], "[(), {'b': bfloat16[]}]"),
        ({"w": 3}, "{'w': 3}"),
        (None, "None"),
    ],
)
def test_parameters_in_messages(params: Any, text: str):
    assert describe_params(params) == text


def test_magnitude_has_the_derivative_0_at_0():
    a = jnp.array([-2.0, -0.0, 0.0, 3.0, -jnp.inf, jnp.nan])
    value, slope = jax.jvp(magnitude, (a,), (jnp.ones_like(a),))
    np.testing.assert_array_equal(value, [2, 0, 0, 3, np.inf, np.nan])
    np.testing.assert_array_equal(slope[:5], [-1, 0, 0, 1, -1])
    assert not np.signbit(value[:4]).any()
