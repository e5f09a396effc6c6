"""scikit-learn's handwritten digits: real data that comes with an installed package."""

import numpy as np

from funcnn.data.dataset import Dataset


def load_digits(test_fraction: float = 0.25, seed: int = 0) -> Dataset:
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn ships, with a stratified part held out.

    Args:
        test_fraction: the share of the examples held out as test examples, between 0 and 1; of every class alike.
        seed: draws the split; one seed is one split.

    Returns:
        A `Dataset`: images (N, 8, 8) uint8 with values 0..16, labels (N,) int32 of 10 classes; N = 1,347 and M = 450
        by default.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: test_fraction is not between 0 and 1, or leaves a part with fewer examples than classes.

    Example:
        >>> load_digits()
        <Dataset digits: 1347 training and 450 test images of 8x8, 10 classes>

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits" (UCI Machine Learning Repository, 1998),
    CC BY 4.0; the test part of it, as `sklearn.datasets.load_digits` has it.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction is the share of the examples held out, between 0 and 1, not {test_fraction}")
    try:
        # Here and not above: scikit-learn is an extra, and funcnn.data imports without it.
        from sklearn import datasets, model_selection  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            "load_digits takes its data from scikit-learn, which is not installed; "
            "install it with: pip install 'funcnn[experiments]'"
        ) from error
    x, y = datasets.load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8).astype(np.uint8)
    y = y.astype(np.int32)
    train, test = model_selection.train_test_split(
        np.arange(len(y)), test_size=test_fraction, random_state=seed, stratify=y
    )
    return Dataset("digits", x[train], y[train], x[test], y[test], x_max=16, classes=10)
