"""The tables that the tests share: every layer, and whole networks, each with a readable id."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnn as fnn
from funcnn import losses, penalties


class LayerProblem(NamedTuple):
    """A layer, and the shape of one example that it takes."""

    layer: fnn.Layer
    in_shape: tuple[int, ...]


ELEMENTWISE = {
    "identity": fnn.Identity(),
    "sigmoid": fnn.Sigmoid(),
    "tanh": fnn.Tanh(),
    "relu": fnn.Relu(),
    "leaky_relu": fnn.LeakyRelu(),
    "leaky_relu-steep": fnn.LeakyRelu(0.7),
    "leaky_relu-zero": fnn.LeakyRelu(0.0),
    "leaky_relu-negative": fnn.LeakyRelu(-0.5),
    "absolute": fnn.Absolute(),
    "swish": fnn.Swish(),
    "swish-beta": fnn.Swish(beta=-1.7),
    "silu": fnn.Silu(),
    "hard_swish": fnn.HardSwish(),
    "gelu": fnn.Gelu(),
    "gelu-tanh": fnn.Gelu(approximate=True),
    "softplus": fnn.Softplus(),
    "elu": fnn.Elu(),
    "elu-alpha": fnn.Elu(alpha=2.5),
    "step": fnn.Step(),
}

# Layers whose examples may have any number of leading batch axes.
BATCHED = {name: LayerProblem(layer, (5,)) for name, layer in ELEMENTWISE.items()} | {
    "softmax": LayerProblem(fnn.Softmax(), (5,)),
    "log_softmax": LayerProblem(fnn.LogSoftmax(), (5,)),
    "prelu": LayerProblem(fnn.Prelu(), (5,)),
    "prelu-shared": LayerProblem(fnn.Prelu(shared=True), (5,)),
    "dense": LayerProblem(fnn.Dense(4), (3,)),
    "dense-no-bias": LayerProblem(fnn.Dense(4, bias=False), (3,)),
    "dense-bias-start": LayerProblem(fnn.Dense(4, w_init="glorot_uniform", b_init=0.1), (3,)),
    "feedback": LayerProblem(fnn.FeedbackDense(4), (3,)),
    "feedback-direct": LayerProblem(fnn.FeedbackDense(4, bias=False, outputs=2), (3,)),
    "maxout": LayerProblem(fnn.Maxout(4, pieces=3), (5,)),
    "maxout-many-pieces": LayerProblem(fnn.Maxout(3, pieces=19), (4,)),
    "maxout-one-piece": LayerProblem(fnn.Maxout(3, pieces=1), (4,)),
    "rbf": LayerProblem(fnn.Rbf(4, epsilon=0.6), (3,)),
    "rbf-fixed": LayerProblem(fnn.Rbf(2, epsilon=0.6, centres=((0.0, 1.0, -1.0), (0.5, 0.2, 0.1))), (3,)),
    "dropout": LayerProblem(fnn.Dropout(0.4), (6,)),
    "dropout-none": LayerProblem(fnn.Dropout(0.0), (6,)),
    "gaussian_noise": LayerProblem(fnn.GaussianNoise(0.3), (6,)),
    "serial": LayerProblem(fnn.Serial(fnn.Dense(6), fnn.Tanh(), fnn.Dropout(0.3), fnn.Dense(2)), (4,)),
    "serial-in-serial": LayerProblem(
        fnn.Serial(fnn.Serial(fnn.Dense(5), fnn.Silu()), fnn.Serial(fnn.Serial(fnn.Dense(3)))), (4,)
    ),
    "residual": LayerProblem(fnn.Residual(fnn.Serial(fnn.Dense(4), fnn.Tanh())), (4,)),
    "residual-projection": LayerProblem(fnn.Residual(fnn.Dense(3), shortcut=fnn.Dense(3, bias=False)), (4,)),
    "parallel-concat": LayerProblem(fnn.Parallel(fnn.Dense(3), fnn.Identity(), fnn.Dense(1)), (4,)),
    "parallel-add": LayerProblem(fnn.Parallel(fnn.Dense(4), fnn.Prelu(), join="add"), (4,)),
    "repeat": LayerProblem(fnn.Repeat(fnn.Serial(fnn.Dense(4), fnn.Tanh(), fnn.Dropout(0.3)), 3), (4,)),
    "weight_noise": LayerProblem(fnn.WeightNoise(fnn.Serial(fnn.Dense(3), fnn.Tanh()), 0.2), (4,)),
    "graph-diamond": LayerProblem(
        fnn.Graph(
            {
                "h": fnn.Node(fnn.Dense(4), "input"),
                "left": fnn.Node(fnn.Tanh(), "h"),
                "right": fnn.Node(fnn.Serial(fnn.Dense(3), fnn.Sigmoid()), "h"),
                "y": fnn.Node(fnn.Dense(2), ("left", "right", "input"), join="concat"),
            },
            output="y",
        ),
        (3,),
    ),
    "graph-shared": LayerProblem(
        fnn.Graph(
            {
                "a": fnn.Node(fnn.Dense(4), "input"),
                "b": fnn.Node(fnn.Tanh(), "a"),
                "c": fnn.Node(fnn.Dense(4), "b", params_of="a"),
                "y": fnn.Node(fnn.Dense(4), ("c", "a", "a"), params_of="a"),
            },
            output="y",
        ),
        (4,),
    ),
}

LAYERS = BATCHED | {
    "flatten": LayerProblem(fnn.Flatten(), (2, 3)),
    "reshape": LayerProblem(fnn.Reshape((3, -1)), (2, 6)),
    "prelu-image": LayerProblem(fnn.Prelu(), (2, 3)),
    "image-classifier": LayerProblem(fnn.Serial(fnn.Flatten(), fnn.Dense(5), fnn.Reshape((5, 1))), (2, 3)),
}

each_layer = pytest.mark.parametrize("problem", LAYERS.values(), ids=LAYERS.keys())
each_batched_layer = pytest.mark.parametrize("problem", BATCHED.values(), ids=BATCHED.keys())


class LossProblem(NamedTuple):
    """A loss, the shape of one output, and what its targets are: see `draw_targets`."""

    loss: losses.Loss
    out_shape: tuple[int, ...]
    targets: str


LOSSES = {
    "squared_error": LossProblem(losses.squared_error, (3,), "real"),
    "squared_error-image": LossProblem(losses.squared_error, (2, 3), "real"),
    "mse": LossProblem(losses.mse, (3,), "real"),
    "mae": LossProblem(losses.mae, (3,), "real"),
    "gaussian_nll": LossProblem(losses.gaussian_nll, (3,), "real"),
    "gaussian_nll-given": LossProblem(losses.gaussian_nll(variance=2.5), (3,), "real"),
    "gaussian_nll-learned": LossProblem(losses.gaussian_nll(variance="learned"), (6,), "real-half"),
    "laplace_nll": LossProblem(losses.laplace_nll(scale=0.7), (3,), "real"),
    "bernoulli_nll": LossProblem(losses.bernoulli_nll, (3,), "bit"),
    "bernoulli_nll-soft": LossProblem(losses.bernoulli_nll, (3,), "unit"),
    "bernoulli_nll-signed": LossProblem(losses.bernoulli_nll(signed=True), (3,), "sign"),
    "softmax_cross_entropy": LossProblem(losses.softmax_cross_entropy, (4,), "label"),
    "softmax_cross_entropy-soft": LossProblem(losses.softmax_cross_entropy, (4,), "soft"),
    "softmax_cross_entropy-smoothed": LossProblem(losses.softmax_cross_entropy(label_smoothing=0.1), (4,), "label"),
    "softmax_cross_entropy-sequence": LossProblem(losses.softmax_cross_entropy, (3, 4), "label"),
    "linear_cross_entropy": LossProblem(losses.linear_cross_entropy, (4,), "label"),
    "nll": LossProblem(losses.nll, (4,), "label"),
    "nll-soft": LossProblem(losses.nll, (4,), "soft"),
}

each_loss = pytest.mark.parametrize("problem", LOSSES.values(), ids=LOSSES.keys())


def numbers(key: jax.Array) -> np.random.Generator:
    """Random numbers by NumPy, which need no compilation for each shape, as JAX's do."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def draw_targets(kind: str, key: jax.Array, n: int, out_shape: tuple[int, ...]) -> jax.Array:
    """Targets of a kind that `LossProblem` names, for n outputs of shape out_shape."""
    shape, rng = (n, *out_shape), numbers(key)
    half = (*shape[:-1], shape[-1] // 2)
    makers: dict[str, Any] = {
        "real": lambda: rng.normal(size=shape),
        "real-half": lambda: rng.normal(size=half),
        "bit": lambda: rng.integers(0, 2, shape),
        "unit": lambda: rng.uniform(size=shape),
        "sign": lambda: rng.choice([-1, 1], shape),
        "label": lambda: rng.integers(0, shape[-1], shape[:-1]),
        "soft": lambda: rng.dirichlet(np.ones(shape[-1]), shape[:-1]),
    }
    return jnp.asarray(makers[kind]())


def draw_params(key: jax.Array, net: fnn.Layer, in_shape: tuple[int, ...]) -> Any:
    """Normal numbers in the place of every parameter, so that none is zero and no two are equal, as at the start."""
    rng = numbers(key)
    like = jax.eval_shape(lambda: net.init(jax.random.key(0), in_shape))
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype), like)


class NetworkProblem(NamedTuple):
    """An objective, the shape of one example, and the kind of its targets."""

    objective: fnn.Objective
    in_shape: tuple[int, ...]
    targets: str

    def draw(self, key: jax.Array, n: int = 7) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        """Parameters and a batch of n examples."""
        key_params, key_x, key_y = jax.random.split(key, 3)
        params = draw_params(key_params, self.objective.net, self.in_shape)
        x = jnp.asarray(numbers(key_x).normal(size=(n, *self.in_shape)))
        y = draw_targets(self.targets, key_y, n, self.objective.net.out_shape(self.in_shape))
        return params, (x, y)


def _mlp(activation: fnn.Layer, out: int = 3) -> fnn.Serial:
    return fnn.Serial(fnn.Dense(6), activation, fnn.Dense(5), activation, fnn.Dense(out))


NETWORKS = {
    "linear-regression": NetworkProblem(fnn.Objective(fnn.Dense(2), losses.squared_error), (4,), "real"),
    "logistic-regression": NetworkProblem(fnn.Objective(fnn.Dense(1), losses.bernoulli_nll), (4,), "bit"),
    "softmax-regression-l2": NetworkProblem(
        fnn.Objective(fnn.Dense(3), losses.softmax_cross_entropy, penalties.l2(0.01)), (4,), "label"
    ),
    "log-softmax-nll": NetworkProblem(
        fnn.Objective(fnn.Serial(fnn.Dense(2), fnn.LogSoftmax()), losses.nll), (4,), "label"
    ),
    "sigmoid-mlp-mse": NetworkProblem(fnn.Objective(_mlp(fnn.Sigmoid()), losses.mse), (4,), "real"),
    "tanh-mlp-mae": NetworkProblem(fnn.Objective(_mlp(fnn.Tanh()), losses.mae), (4,), "real"),
    "relu-mlp-l1-l2": NetworkProblem(
        fnn.Objective(
            _mlp(fnn.Relu()), losses.softmax_cross_entropy, penalties.l1(0.01) + penalties.l2(0.1, leaves=None)
        ),
        (4,),
        "label",
    ),
    "silu-mlp-smoothed": NetworkProblem(
        fnn.Objective(_mlp(fnn.Silu()), losses.softmax_cross_entropy(label_smoothing=0.1)), (4,), "label"
    ),
    "learned-variance": NetworkProblem(
        fnn.Objective(_mlp(fnn.Tanh(), out=4), losses.gaussian_nll(variance="learned")), (4,), "real-half"
    ),
    "maxout-mlp": NetworkProblem(
        fnn.Objective(
            fnn.Serial(fnn.Maxout(5, pieces=3), fnn.Maxout(4, pieces=2), fnn.Dense(3)),
            losses.bernoulli_nll(signed=True),
        ),
        (4,),
        "sign",
    ),
    "rbf-network": NetworkProblem(
        fnn.Objective(fnn.Serial(fnn.Rbf(8, epsilon=0.4), fnn.FeedbackDense(2)), losses.gaussian_nll(variance=2.5)),
        (3,),
        "real",
    ),
    "image-prelu-net": NetworkProblem(
        fnn.Objective(
            fnn.Serial(fnn.Prelu(), fnn.Flatten(), fnn.Dense(5), fnn.Prelu(shared=True), fnn.Dense(3)),
            losses.bernoulli_nll,
        ),
        (2, 3),
        "unit",
    ),
    "residual-tower": NetworkProblem(
        fnn.Objective(
            fnn.Serial(
                fnn.Dense(5),
                fnn.Residual(fnn.Serial(fnn.Dense(5), fnn.Gelu())),
                fnn.Residual(fnn.Serial(fnn.Dense(5), fnn.Elu()), shortcut=fnn.Dense(5, bias=False)),
                fnn.Parallel(fnn.Dense(2), fnn.Softplus()),
                fnn.Dense(3),
            ),
            losses.linear_cross_entropy(chunk=3),
        ),
        (4,),
        "label",
    ),
    "graph-diamond": NetworkProblem(
        fnn.Objective(BATCHED["graph-diamond"].layer, losses.laplace_nll(scale=0.7)), (3,), "real"
    ),
    "every-activation": NetworkProblem(
        fnn.Objective(
            fnn.Serial(
                fnn.Parallel(
                    *(fnn.Serial(fnn.Dense(2, bias=False), activation) for activation in ELEMENTWISE.values())
                ),
                fnn.Reshape((2, -1)),
                fnn.Cast(fnn.Dense(3), "float32"),
                fnn.Flatten(),
                fnn.Parallel(fnn.Softmax(), fnn.Rbf(2, epsilon=0.3, centres=((0.5,) * 6, (-0.5,) * 6))),
            ),
            losses.squared_error,
        ),
        (3,),
        "real",
    ),
    "graph-shared": NetworkProblem(
        fnn.Objective(BATCHED["graph-shared"].layer, losses.mse, penalties.l2(0.1)), (4,), "real"
    ),
    "repeated-blocks": NetworkProblem(
        fnn.Objective(
            fnn.Serial(
                fnn.Dense(3),
                fnn.Repeat(fnn.Serial(fnn.Maxout(3, pieces=2), fnn.Prelu(), fnn.Repeat(fnn.Rbf(3, epsilon=0.6), 2)), 2),
                fnn.Dense(3),
                fnn.Sigmoid(),
                fnn.Repeat(fnn.Serial(fnn.Dense(3), fnn.Tanh()), 3),
            ),
            losses.softmax_cross_entropy,
        ),
        (4,),
        "label",
    ),
    "noisy": NetworkProblem(
        fnn.weight_noise(0.1)(
            fnn.Objective(
                fnn.Serial(fnn.GaussianNoise(0.1), fnn.Dense(6), fnn.Relu(), fnn.Dropout(0.3), fnn.Dense(3)),
                losses.softmax_cross_entropy,
                penalties.l2(0.01),
            )
        ),
        (4,),
        "label",
    ),
}

each_network = pytest.mark.parametrize("problem", NETWORKS.values(), ids=NETWORKS.keys())
