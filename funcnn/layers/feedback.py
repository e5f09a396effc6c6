"""A dense layer with feedback weights: for learning rules that send deltas back by other weights than forward."""

import dataclasses

import jax

from funcnn.initializers import Initializer, draw
from funcnn.layer import Key, Params, Shape, against, check_count, check_last_axis, check_params, last_axis
from funcnn.layers.dense import Dense, product


@dataclasses.dataclass(frozen=True)
class FeedbackDense(Dense):
    """A dense layer that holds weights for the way back too, which its output does not depend on.

    z = x w + b, with x (..., D), w (D, K), b (K,), z (..., K), as `Dense`; beside them feedback weights (D, K), or
    (D, `outputs`). By the usual rules and by `jax.grad` they have the gradient 0; `backprop.learning` has rules that
    use them, such as feedback alignment.

    Args:
        features: K, the number of outputs.
        bias: whether there is a b.
        w_init: initialiser of w.
        b_init: initialiser of b.
        outputs: None, or how many outputs the whole network has, for feedback that comes directly from there.
        feedback_init: initialiser of the feedback weights.

    Raises:
        LayerError: `features` or `outputs` is not positive; `x` or `params` do not fit.

    Example:
        >>> import jax, funcnn as fnn
        >>> params = fnn.FeedbackDense(3).init(jax.random.key(0), (4,))
        >>> {name: array.shape for name, array in params.items()}
        {'w': (4, 3), 'b': (3,), 'feedback': (4, 3)}

    Source: Lillicrap et al., Random Synaptic Feedback Weights (2016); Noekland (2016) for `outputs`.
    """

    outputs: int | None = None
    feedback_init: Initializer = "he_normal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.outputs is not None:
            check_count(self, "outputs", self.outputs)

    @property
    def width(self) -> int:
        """How many numbers the feedback comes from."""
        return self.features if self.outputs is None else self.outputs

    def init(self, key: Key, in_shape: Shape) -> Params:
        feedback = draw(self.feedback_init, jax.random.fold_in(key, 1), (last_axis(self, in_shape), self.width))
        return super().init(key, in_shape) | {"feedback": feedback}

    def apply(self, params: Params, x: jax.Array, *, key: Key | None = None, train: bool = False) -> jax.Array:
        shapes = {"w": (-1, self.features)} | ({"b": (self.features,)} if self.bias else {})
        check_params(self, params, shapes | {"feedback": (-1, self.width)})
        check_last_axis(self, x, params["w"].shape[0])
        z = product(x, params["w"])
        return z + against(params["b"], z) if self.bias else z
