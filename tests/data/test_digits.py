"""scikit-learn's digits: all of them, split by class, and the scaling that both datasets share."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

from funcnn.data import Dataset, load_digits


def joined(dataset: Dataset) -> np.ndarray:
    """All examples, as sorted rows of 64 pixels and a label: the same for every split of the same data."""
    x = np.concatenate([dataset.x_train, dataset.x_test]).reshape(-1, 64)
    y = np.concatenate([dataset.y_train, dataset.y_test])
    rows = np.column_stack([x, y])
    return rows[np.lexsort(rows.T)]


def test_shapes_dtypes_and_values():
    dataset = load_digits()
    assert (dataset.x_train.shape, dataset.y_train.shape) == ((1347, 8, 8), (1347,))
    assert (dataset.x_test.shape, dataset.y_test.shape) == ((450, 8, 8), (450,))
    for x, y in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)):
        assert (x.dtype, y.dtype) == (np.uint8, np.int32)
        assert set(np.unique(x)) == set(range(17))
        assert set(np.unique(y)) == set(range(10))
    assert (dataset.name, dataset.x_max, dataset.classes) == ("digits", 16, 10)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_every_example_is_on_exactly_one_side_with_its_own_label(fraction: float):
    from sklearn import datasets

    x, y = datasets.load_digits(return_X_y=True)
    rows = np.column_stack([x, y]).astype(np.int64)
    np.testing.assert_array_equal(joined(load_digits(fraction, seed=3)), rows[np.lexsort(rows.T)])


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_every_class_is_held_out_alike(fraction: float):
    dataset = load_digits(fraction)
    assert len(dataset.y_test) == np.ceil(1797 * fraction)
    train, test = np.bincount(dataset.y_train), np.bincount(dataset.y_test)
    assert np.all(np.abs(test - fraction * (train + test)) <= 1)


def test_the_seed_draws_the_split():
    one, same, other = load_digits(seed=1), load_digits(seed=1), load_digits(seed=2)
    np.testing.assert_array_equal(one.x_train, same.x_train)
    np.testing.assert_array_equal(one.y_test, same.y_test)
    assert not np.array_equal(one.x_train, other.x_train)
    assert not np.array_equal(one.x_train, load_digits().x_train)


@pytest.mark.parametrize("fraction", [0, 1, -0.25, 1.5, 450, float("nan")])
def test_a_fraction_outside_0_and_1(fraction: float):
    with pytest.raises(ValueError, match=r"between 0 and 1, not"):
        load_digits(fraction)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", jnp.bfloat16, jnp.float32])
def test_arrays_in_every_floating_dtype(dtype):
    dataset = load_digits()
    (x, y), (x_test, y_test) = dataset.arrays(dtype)
    assert x.dtype == x_test.dtype == np.dtype(dtype)
    assert (x.shape, x_test.shape) == ((1347, 64), (450, 64))
    # Sixteenths are exact in every one of these types, and rows stay rows.
    np.testing.assert_array_equal(x.astype(np.float64), dataset.x_train.reshape(1347, 64) / 16)
    np.testing.assert_array_equal(x_test.astype(np.float64), dataset.x_test.reshape(450, 64) / 16)
    np.testing.assert_array_equal(y, dataset.y_train)
    np.testing.assert_array_equal(y_test, dataset.y_test)
    assert (y.dtype, y_test.dtype) == (np.int32, np.int32)


def test_arrays_are_float32_unless_asked():
    (x, _), _ = load_digits().arrays()
    assert x.dtype == np.float32


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool", "complex64", "U8"])
def test_arrays_in_no_floating_dtype(dtype: str):
    with pytest.raises(ValueError, match=f"floating dtype such as float32, not {np.dtype(dtype).name}"):
        load_digits().arrays(dtype)


def test_repr_is_a_line():
    assert repr(load_digits(0.5)) == "<Dataset digits: 898 training and 899 test images of 8x8, 10 classes>"


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"scikit-learn.* pip install 'funcnn\[experiments\]'"):
        load_digits()
