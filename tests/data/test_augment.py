"""Augmentations: what each does to an image or a label, how its random numbers are distributed, and errors."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage, stats

import funcnn as fnn
from funcnn.data import augment
from funcnn.data.augment import Elastic, Flip, FlipLabels, InputNoise, Rotate, Shift, TargetNoise
from funcnn.data.prepare import Pixels

pytestmark = pytest.mark.once

N = 4000  # draws; a mean of them is within 5 standard deviations / sqrt(N) but for 1 key in a million
FAR = 5 / math.sqrt(N)

ON_IMAGES = {
    "shift": Shift(2),
    "rotate": Rotate(30),
    "elastic": Elastic(8.0, 2.0),
    "flip": Flip(vertical=True),
    "input_noise": InputNoise(0.5),
}
ON_TARGETS = {"target_noise": TargetNoise(0.5), "flip_labels": FlipLabels(0.5, 5)}
EVERY = ON_IMAGES | ON_TARGETS


def assert_drawn_from(counts: Any, probabilities: Any) -> None:
    """Pearson's statistic is below what it exceeds for 1 key in a million."""
    counts, expected = np.asarray(counts), np.sum(counts) * np.asarray(probabilities)
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < stats.chi2.isf(1e-6, counts.size - 1), counts


def batch_for(name: str, rng: np.random.Generator, dtype: Any = np.float32) -> tuple[jax.Array, ...]:
    """32 times the same example, with a weight."""
    x = jnp.asarray(np.tile(rng.uniform(0.1, 1, (1, 5, 6)), (32, 1, 1)), dtype)
    y = jnp.full((32, 3), 2, dtype) if name == "target_noise" else jnp.full(32, 3)
    return x, y, jnp.linspace(0, 1, 32)


@pytest.mark.parametrize("name", EVERY)
def test_the_key_decides_for_each_example_apart(name: str, key: jax.Array, rng: np.random.Generator):
    function, batch = EVERY[name], batch_for(name, rng)
    changed = 0 if name in ON_IMAGES else 1
    apply = jax.jit(function)
    one, again, other = (apply(k, batch) for k in (key, key, jax.random.fold_in(key, 1)))
    for i in range(3):
        assert (one[i].shape, one[i].dtype) == (batch[i].shape, batch[i].dtype)
        np.testing.assert_array_equal(one[i], again[i])
        assert np.array_equal(one[i], batch[i]) == np.array_equal(one[i], other[i]) == (i != changed)
    assert len(np.unique(np.asarray(one[changed]), axis=0)) > 1  # the same example, and not the same numbers
    assert np.isfinite(one[changed]).all()


@pytest.mark.parametrize("name", ["elastic", "flip_labels"])
def test_jit_and_vmap_change_nothing(name: str, key: jax.Array, rng: np.random.Generator):
    function, batch = EVERY[name], batch_for(name, rng)[:2]
    eager = function(key, batch)
    jitted = jax.jit(function)(key, batch)
    mapped = jax.jit(jax.vmap(function, (0, None)))(jnp.stack([jax.random.fold_in(key, 1), key]), batch)
    assert len(eager) == len(jitted) == 2
    for e, j, m in zip(eager, jitted, mapped, strict=True):
        # float32, and jit fuses products and sums: a place wrong by 1e-6 pixels is a value wrong by as much.
        np.testing.assert_allclose(j, e, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(m[1], e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", ["rotate", "elastic", "input_noise"])  # shift has a test of its own
def test_other_dtypes(name: str, wanted: str, key: jax.Array, rng: np.random.Generator):
    with jax.enable_x64(wanted == "float64"):
        x, *rest = batch_for(name, rng, wanted)
        got, *_ = jax.jit(EVERY[name])(key, (x, *rest))
        assert got.dtype == x.dtype == wanted
        assert np.isfinite(np.asarray(got, np.float64)).all()
        assert not np.array_equal(got, x)


@pytest.mark.parametrize("name", ["shift", "rotate", "elastic", "flip"])
def test_images_of_every_form_are_treated_alike(name: str, key: jax.Array, rng: np.random.Generator):
    function = ON_IMAGES[name]
    apply = jax.jit(function)
    x = jnp.asarray(rng.uniform(size=(4, 5, 6)), jnp.float32)
    two = jnp.asarray(rng.uniform(size=(4, 5, 6)), jnp.float32)
    colour = jnp.stack([x, two], -1)
    want, second = (np.asarray(apply(key, (image, 0))[0]) for image in (x, two))
    for form, image, expected in [
        (function.replace(shape=(5, 6)), x.reshape(4, 30), want.reshape(4, 30)),
        (function.replace(shape=(5, 6, 2)), colour.reshape(4, 60), np.stack([want, second], -1).reshape(4, 60)),
    ]:
        got, _ = jax.jit(form)(key, (image, 0))
        assert got.shape == image.shape
        np.testing.assert_allclose(got, expected, atol=1e-6)  # float32


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    out = np.roll(image, (down, right), (0, 1))
    out[: max(down, 0)], out[len(out) + min(down, 0) :] = 0, 0
    out[:, : max(right, 0)], out[:, out.shape[1] + min(right, 0) :] = 0, 0
    return out


@pytest.mark.parametrize("dtype_name", ["uint8", "bfloat16"])
def test_shift_is_a_roll_with_zeros_and_uniform(dtype_name: str, key: jax.Array, rng: np.random.Generator):
    apply = jax.jit(Shift(2))
    dots = jnp.zeros((N, 7, 9), dtype_name).at[:, 3, 4].set(1)
    _, rows, columns = np.nonzero(np.asarray(apply(key, (dots, 0))[0]))
    down, right = rows - 3, columns - 4
    counts = np.zeros((5, 5))
    np.add.at(counts, (down + 2, right + 2), 1)
    assert_drawn_from(counts, np.full((5, 5), 1 / 25))  # both axes at once: they are independent too
    images = jnp.asarray(rng.integers(1, 200, (N, 7, 9)), dtype_name)
    moved = np.asarray(apply(key, (images, 0))[0])
    images = np.asarray(images)
    for n in range(100):
        np.testing.assert_array_equal(moved[n], shifted(images[n], down[n], right[n]))


def test_a_shift_may_be_larger_than_the_image(key: jax.Array):
    x, _ = Shift(5)(key, (jnp.ones((400, 2, 2)), 0))
    overlaps = np.asarray(x).any((1, 2)).mean()
    assert abs(overlaps - (3 / 11) ** 2) < 5 / 20 * 0.27  # |a| < 2 and |b| < 2; 0.27 is its standard deviation


@pytest.mark.parametrize("turns", [0, 1, 2, -1])
def test_turned_by_quarters(turns: int, rng: np.random.Generator):
    x = rng.uniform(1, 2, (3, 6, 6, 2)).astype(np.float32)
    got = augment._turned(jnp.asarray(x), jnp.full(3, turns * math.pi / 2, jnp.float32))
    # float32: a place is wrong by 1e-6 pixels, and next to the edge the image falls by 2 in one pixel.
    np.testing.assert_allclose(got, np.rot90(x, turns, (1, 2)), atol=1e-5)


def test_turned_by_any_angle_as_scipy_does(rng: np.random.Generator):
    x = np.zeros((9, 11), np.float32)
    x[2:7, 2:9] = rng.uniform(1, 2, (5, 7))
    got = augment._turned(jnp.asarray(x)[None, :, :, None], jnp.array([math.radians(33)], jnp.float32))
    want = ndimage.rotate(x, 33, reshape=False, order=1)
    np.testing.assert_allclose(got[0, :, :, 0], want, atol=1e-5)  # float32


def test_rotate_draws_its_angle_uniformly(key: jax.Array):
    ramp = jnp.broadcast_to(jnp.arange(5.0) - 2, (N, 5, 5))  # linear, so that it is interpolated exactly
    x = np.asarray(jax.jit(Rotate(40))(key, (ramp, 0))[0])
    angles = np.degrees(np.arctan2(-x[:, 3, 2], x[:, 2, 3]))
    assert np.abs(angles).max() < 40 + 1e-3
    assert_drawn_from(np.histogram(angles, 10, (-40.001, 40.001))[0], np.full(10, 1 / 10))


def test_elastic_displaces_by_what_it_says(key: jax.Array):
    ramps = jnp.stack(jnp.meshgrid(jnp.arange(9.0), jnp.arange(9.0), indexing="ij"), -1)
    x, _ = jax.jit(Elastic(alpha=1.5, sigma=1.2))(key, (jnp.broadcast_to(ramps, (N, 9, 9, 2)), 0))
    down, right = np.asarray(x)[:, 4, 4, :].T - 4
    std = 1.5 / (2 * 1.2 * math.sqrt(3 * math.pi))
    for displacement in (down, right):
        assert abs(displacement.mean()) < FAR * std
        assert abs(displacement.std() / std - 1) < FAR / math.sqrt(2) + 0.003  # and what a Gaussian has beyond 4 pixels
    assert abs((down * right).mean()) < FAR * std**2


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_the_field_is_smoothed_by_a_gaussian(sigma: float, key: jax.Array, x64: None):
    u = jax.random.uniform(key, (2, 3, 7, 5), jnp.float64, -1, 1)
    want = ndimage.gaussian_filter(np.asarray(u), (0, 0, sigma, sigma), mode="constant", truncate=8)
    np.testing.assert_allclose(augment._smooth_field(key, (3, 7, 5), sigma, jnp.float64), want, atol=1e-12)


@pytest.mark.parametrize("function", [Shift(0), Rotate(0), Elastic(0, 3.0), Flip(False), InputNoise(0.0)], ids=repr)
def test_nothing_is_nothing(function: Callable[..., Any], key: jax.Array, rng: np.random.Generator):
    x, y, weight = batch_for("", rng)
    np.testing.assert_array_equal(function(key, (x, y, weight))[0], x)


def test_flip_mirrors_each_axis_in_half_of_the_images(key: jax.Array):
    image = np.arange(6).reshape(2, 3)
    forms = [image[::v, ::h] for v in (1, -1) for h in (1, -1)]
    for function, share in [
        (Flip(), [0.5, 0.5, 0, 0]),
        (Flip(horizontal=False, vertical=True), [0.5, 0, 0.5, 0]),
        (Flip(vertical=True), [0.25] * 4),
    ]:
        x = np.asarray(jax.jit(function)(key, (jnp.broadcast_to(jnp.asarray(image), (N, 2, 3)), 0))[0])
        counts = np.array([(x == form).all((1, 2)).sum() for form in forms])
        assert counts.sum() == N
        possible = np.array(share) > 0
        assert not counts[~possible].any()
        assert_drawn_from(counts[possible], np.array(share)[possible])


@pytest.mark.parametrize("function", [InputNoise(0.5), TargetNoise(0.5)], ids=repr)
def test_noise_has_its_mean_and_spread(function: Any, key: jax.Array):
    ones = jnp.ones((N, 1))
    x, y = (np.asarray(array) - 1 for array in jax.jit(function)(key, (ones, ones)))
    noise, rest = (x, y) if isinstance(function, InputNoise) else (y, x)
    assert not rest.any()
    assert abs(noise.mean()) < FAR * 0.5
    assert abs(noise.std() / 0.5 - 1) < FAR
    assert abs((noise > 0.5).mean() - 0.158655) < FAR  # the tail beyond one standard deviation: it is normal


def test_labels_flip_at_the_rate_to_every_other_class_alike(key: jax.Array):
    labels = jnp.array([0, 3, 4])
    _, y = jax.jit(FlipLabels(0.4, 5))(key, (0, jnp.broadcast_to(labels, (N, 3))))
    for label, column in zip([0, 3, 4], np.asarray(y).T, strict=True):
        assert_drawn_from(np.bincount(column, minlength=5), np.where(np.arange(5) == label, 0.6, 0.1))


def test_labels_of_a_narrow_dtype(key: jax.Array):
    labels = jnp.arange(120, dtype=jnp.int8)
    _, never = jax.jit(FlipLabels(0.0, 120))(key, (0, labels))
    _, always = jax.jit(FlipLabels(1.0, 120))(key, (0, labels))
    assert never.dtype == always.dtype == labels.dtype
    np.testing.assert_array_equal(never, labels)
    assert (np.asarray(always) != np.asarray(labels)).all()
    assert 0 <= int(always.min()) < int(always.max()) < 120  # 119 + 119 is more than an int8 holds


def test_in_a_compiled_step(key: jax.Array, rng: np.random.Generator):
    objective = fnn.Objective(fnn.Dense(5), fnn.losses.softmax_cross_entropy)
    functions = [Shift(1, (5, 6)), Rotate(10, (5, 6)), InputNoise(0.1), FlipLabels(0.1, 5)]
    step = fnn.train.step(objective, optax.sgd(0.1), prepare=Pixels(), augment=functions)
    params = objective.net.init(key, (30,))
    batch = jnp.asarray(rng.integers(0, 256, (8, 5, 6)), jnp.uint8), jnp.arange(8) % 5
    state, metrics = step(fnn.train.start(optax.sgd(0.1), params, key), batch)
    assert np.isfinite(metrics["loss"])
    again, _ = step(fnn.train.start(optax.sgd(0.1), params, key), batch)
    np.testing.assert_array_equal(state.params["w"], again.params["w"])


@pytest.mark.parametrize("function", EVERY.values(), ids=repr)
def test_each_is_a_value(function: Any):
    if hasattr(function, "shape"):
        function = function.replace(shape=[5, 6])
        assert function.shape == (5, 6)
    assert fnn.from_json(fnn.to_json(function)) == function == function.replace()
    assert eval(repr(function)) == function
    assert hash(function.replace()) == hash(function)


FLOAT, BYTES, LABELS = np.zeros((2, 12), np.float32), np.zeros((2, 3, 4), np.uint8), np.zeros(2, np.int32)


@pytest.mark.parametrize(
    ("error", "call", "words"),
    [
        (ValueError, lambda key: Shift(-1), ["Shift's pixels", "integer, 0 or more", "-1"]),
        (ValueError, lambda key: Shift(1.5), ["Shift's pixels", "1.5"]),  # pyright: ignore[reportArgumentType]
        (ValueError, lambda key: Shift(2, 28), ["Shift's shape", "(28, 28)", "got 28"]),  # pyright: ignore[reportArgumentType]
        (ValueError, lambda key: Flip(shape=(0, 3)), ["Flip's shape", "(h, w)", "(0, 3)"]),
        (ValueError, lambda key: Rotate(math.nan), ["Rotate's degrees", "not negative", "nan"]),
        (ValueError, lambda key: Elastic(math.inf, 4), ["Elastic's alpha", "finite", "inf"]),
        (ValueError, lambda key: Elastic(34, 0), ["Elastic's sigma", "positive", "0"]),
        (ValueError, lambda key: InputNoise(-0.1), ["InputNoise's std", "-0.1"]),
        (ValueError, lambda key: TargetNoise(math.nan), ["TargetNoise's std", "nan"]),
        (ValueError, lambda key: FlipLabels(1.1, 10), ["FlipLabels's rate", "[0, 1]", "1.1"]),
        (ValueError, lambda key: FlipLabels(0.1, 1), ["FlipLabels's classes", "2 or more", "1"]),
        (
            ValueError,
            lambda key: Shift(2)(key, (FLOAT, LABELS)),
            ["Shift(2) takes images", "(2, 12)", "Shift(..., shape=(28, 28))"],
        ),
        (
            ValueError,
            lambda key: Rotate(5, (4, 4))(key, (FLOAT, LABELS)),
            ["Rotate(5, shape=(4, 4)) takes images (N, 4, 4), or flattened (N, 16)", "(2, 12)"],
        ),
        (TypeError, lambda key: Rotate(5)(key, (BYTES, LABELS)), ["Rotate(5)", "uint8[2, 3, 4]", "prepare=Pixels(255"]),
        (TypeError, lambda key: Elastic(5, 1)(key, (BYTES, LABELS)), ["Elastic(5, 1)", "uint8", "prepare=Pixels(255"]),
        (TypeError, lambda key: InputNoise(1)(key, (BYTES, LABELS)), ["InputNoise(1)", "uint8", "prepare=Pixels(255"]),
        (TypeError, lambda key: TargetNoise(1)(key, (FLOAT, LABELS)), ["floating y", "int32[2]", "FlipLabels(rate,"]),
        (TypeError, lambda key: FlipLabels(0.1, 3)(key, (FLOAT, FLOAT)), ["float32[2, 12]", "TargetNoise(std)"]),
    ],
)
def test_errors_say_what_and_the_way(error: type, call: Callable[..., Any], words: list[str], key: jax.Array):
    with pytest.raises(error) as caught:
        call(key)
    assert all(word in str(caught.value) for word in words), str(caught.value)
