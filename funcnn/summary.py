"""A network at a glance: path, layer, output shape, parameters and multiply-adds of each layer."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax

from funcnn import table
from funcnn.compose import Combinator
from funcnn.graph import Graph
from funcnn.layer import Layer, Shape, check_in_shape


@dataclasses.dataclass(frozen=True)
class SummaryRow:
    """One layer of a network.

    Attributes:
        path: the names that lead to it.
        layer: the layer.
        out_shape: the shape of one output.
        parameters: how many numbers it learns; 0 where it uses another node's.
        multiply_adds: of its matrix products, for one example.
    """

    path: str
    layer: Layer
    out_shape: Shape
    parameters: int
    multiply_adds: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `summary` returns. `print` shows a table.

    Attributes:
        in_shape: the shape of one example.
        rows: a `SummaryRow` for each layer that is not made of others, in forward order.
    """

    in_shape: Shape
    rows: tuple[SummaryRow, ...]

    @property
    def parameters(self) -> int:
        """How many numbers the network learns."""
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the network's matrix products, for one example."""
        return sum(row.multiply_adds for row in self.rows)

    def _table(self) -> table.Table:
        rows = [
            (row.path, repr(row.layer), str(row.out_shape), f"{row.parameters:,}", f"{row.multiply_adds:,}")
            for row in self.rows
        ]
        rows.append(("total", "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}"))
        columns = ("path", "layer", "output", "parameters", "multiply-adds")
        return table.Table(f"One example of shape {self.in_shape}", columns, tuple(rows))

    def __str__(self) -> str:
        return self._table().text()

    def __rich__(self) -> Any:
        return self._table().rich()


def summary(net: Layer, in_shape: Shape) -> Summary:
    """The layers of a network with their output shapes, parameters and multiply-adds.

    Args:
        net: any layer.
        in_shape: the shape of one example, without the batch axis.

    Returns:
        A `Summary`: print it, or read `.rows`, `.parameters`, `.multiply_adds`.

    Raises:
        LayerError: the network does not take examples of that shape; the message names the layer.

    Example:
        >>> import funcnn as fnn
        >>> print(fnn.summary(fnn.Serial(fnn.Dense(8), fnn.Relu(), fnn.Dense(2)), (3,)))
        One example of shape (3,)
        path   layer     output  parameters  multiply-adds
        -----  --------  ------  ----------  -------------
        0      Dense(8)  (8,)    32          24
        1      Relu()    (8,)    0           0
        2      Dense(2)  (2,)    18          16
        total                    50          40
    """
    in_shape = check_in_shape(in_shape)
    net.out_shape(in_shape)  # raises where parts do not fit together
    return Summary(in_shape, tuple(_rows(net, in_shape, ())))


def _rows(layer: Layer, in_shape: Shape, path: tuple[str, ...]) -> Iterator[SummaryRow]:
    if isinstance(layer, Combinator):
        borrowers = {name for name, node in layer.nodes if node.params_of} if isinstance(layer, Graph) else set()
        for name, part, shape in layer.parts_in_shapes(in_shape):
            for row in _rows(part, shape, path if name is None else (*path, name)):
                yield dataclasses.replace(row, parameters=0) if name in borrowers else row
        return
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), in_shape))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    yield SummaryRow("/".join(path), layer, layer.out_shape(in_shape), count, layer.multiply_adds(in_shape))
