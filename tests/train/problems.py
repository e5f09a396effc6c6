"""One small problem for all tests of training, so that few programs are compiled."""

from typing import Any

import jax
import numpy as np
import optax

import funcnn as fnn

NET = fnn.Serial(fnn.Dense(8), fnn.Relu(), fnn.Dropout(0.25), fnn.Dense(3))
OBJECTIVE = fnn.Objective(NET, fnn.losses.softmax_cross_entropy, fnn.penalties.l2(1e-3))
OPTIMIZER = optax.adam(1e-2)
METRICS = {"accuracy": fnn.train.accuracy}
KEY = jax.random.key(5)
N, BATCH = 22, 8  # two full batches and one of 6

# Between two programs of the same steps, whose sums XLA may take in other orders: seen were 2e-7 and 3e-16.
ROUNDING = {"float32": 1e-6, "float64": 1e-14}


def examples(n: int = N, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (n, 5) and classes (n,) that depend on them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 5)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int32) + (x[:, 1] > 0.5).astype(np.int32)


def start() -> Any:
    """The parameters to begin with."""
    return NET.init(jax.random.key(1), (5,))


def fit(data: Any = None, **changes: Any) -> tuple[fnn.train.State, fnn.train.History]:
    """`fit` of the problem, silent."""
    options: dict[str, Any] = {
        "epochs": 3, "batch_size": BATCH, "key": KEY, "metrics": METRICS, "valid": examples(10, seed=1),
        "progress": None,
    } | changes  # fmt: skip
    objective, optimizer = options.pop("objective", OBJECTIVE), options.pop("optimizer", OPTIMIZER)
    params = options.pop("params", None)
    data = examples() if data is None else data
    return fnn.train.fit(objective, optimizer, start() if params is None else params, data, **options)


def assert_same(a: Any, b: Any) -> None:
    """Two states, or two pytrees, are equal to the last bit."""
    assert_close(a, b, 0.0)


def assert_close(a: Any, b: Any, tolerance: float) -> None:
    """Two pytrees differ in no array by more than `tolerance` of its largest number (of 1, where all are smaller).

    Random keys are equal to the last bit.
    """
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
            assert (jax.random.key_data(x) == jax.random.key_data(y)).all()
        elif tolerance == 0:
            np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path), strict=True)
        else:
            error = np.abs(np.asarray(x) - np.asarray(y)).max() / max(1.0, np.abs(np.asarray(y)).max())
            assert error <= tolerance, (jax.tree_util.keystr(path), error)


def assert_same_history(a: fnn.train.History, b: fnn.train.History) -> None:
    """All but the time."""
    assert list(a) == list(b)
    for name in a:
        if name != "seconds":
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    np.testing.assert_array_equal(a.step_loss, b.step_loss)
