"""The quantities by other libraries, on the same weights: PyTorch with BackPACK and with Opacus, and `jax.vmap`."""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import funcnn as fnn
from experiments.common import measure, networks
from funcnn.layer import Params

# So many times is 1/N a factor of what BackPACK saves, where the loss is a mean; we have the examples' own gradients.
SHARES = {"BatchL2Grad": 2, "SumGradSquared": 2, "Variance": 2, "BatchGrad": 1}
CLIP = 22.0  # the bound of clipped gradients: about half of the examples' norms are above it


class Problem(NamedTuple):
    """A network of dense layers, and one batch for it."""

    activation: str
    objective: fnn.Objective
    params: Params
    batch: tuple[jax.Array, jax.Array]

    @classmethod
    def of(cls, sizes: Sequence[int], activation: str, x: np.ndarray, y: np.ndarray) -> "Problem":
        """In float32, or in float64 under `jax.enable_x64`."""
        net = networks.mlp(sizes[1:-1], networks.ACTIVATIONS[activation], sizes[-1])
        params = net.init(jax.random.key(0), (sizes[0],))
        batch = jnp.asarray(x, jnp.result_type(float)), jnp.asarray(y)
        return cls(activation, fnn.Objective(net, fnn.losses.softmax_cross_entropy), params, batch)


class Theirs(NamedTuple):
    """A quantity by another library."""

    gradient: Callable[[], Any]  # loss and gradient alone
    run: Callable[[], Any]  # the quantity
    values: Callable[[], list[np.ndarray]]  # what `run` found, in the order, shapes and scale of our leaves
    temp_bytes: int | None = None


class Peer(NamedTuple):
    """Another library, and how it computes a quantity: `make(problem, what)`."""

    label: str
    package: str  # whose version is recorded
    modules: tuple[str, ...]  # that have to be installed
    gradient: str  # whose gradient its time is compared with
    make: Callable[[Problem, str], Theirs]

    @property
    def missing(self) -> bool:
        """Whether it is not installed."""
        return any(importlib.util.find_spec(module) is None for module in self.modules)

    @property
    def versions(self) -> dict[str, str]:
        """Of its package and, where it extends PyTorch, of that."""
        packages = (self.package, "torch") if "torch" in self.modules else (self.package,)
        return {package: importlib.metadata.version(package) for package in packages}


def use_cores(cores: int) -> None:
    """Lets PyTorch, where it is installed, use as many threads as JAX has cores."""
    if importlib.util.find_spec("torch") is not None:
        importlib.import_module("torch").set_num_threads(cores)


def _backpack(problem: Problem, extension: str) -> Theirs:
    """A backward pass inside `with backpack(extension)`."""
    backpack, extensions = importlib.import_module("backpack"), importlib.import_module("backpack.extensions")
    plain, criterion, x, y = _torch(problem)
    model, extended = (backpack.extend(part) for part in _torch(problem)[:2])
    field = getattr(extensions, extension)().savefield
    scale = float(len(y)) ** SHARES.get(extension, 0)

    def run() -> None:
        model.zero_grad()
        with backpack.backpack(getattr(extensions, extension)()):
            extended(model(x), y).backward()

    def values() -> list[np.ndarray]:
        found = _values(model, field)
        if extension == "BatchL2Grad":
            return [np.sqrt(scale * sum(found))]
        if isinstance(found[0], list):  # Kronecker factors: [B] of a bias, [B, A] of weights
            return [factor.numpy() for factors in found for factor in reversed(factors)]
        return [scale * value for value in found]

    return Theirs(_gradient(plain, criterion, x, y), run, values)


def _opacus_ghost(problem: Problem, _: str) -> Theirs:
    """Clipped gradients in two passes: the norms, and then the sum."""
    torch, wrappers, optimizers = map(importlib.import_module, ("torch", "opacus.grad_sample", "opacus.optimizers"))
    losses = importlib.import_module("opacus.utils.fast_gradient_clipping_utils")
    plain, criterion, x, y = _torch(problem)
    inner = _torch(problem)[0]
    model = wrappers.GradSampleModuleFastGradientClipping(inner, max_grad_norm=CLIP)
    optimizer = optimizers.DPOptimizerFastGradientClipping(
        torch.optim.SGD(model.parameters()), noise_multiplier=0.0, max_grad_norm=CLIP, expected_batch_size=len(y)
    )
    clipped = losses.DPLossFastGradientClipping(model, optimizer, torch.nn.CrossEntropyLoss())
    return Theirs(
        _gradient(plain, criterion, x, y), lambda: clipped(model(x), y).backward(), lambda: _values(inner, "grad")
    )


def _opacus(problem: Problem, _: str) -> Theirs:
    """Clipped gradients by way of the gradients of all examples."""
    torch, wrappers, optimizers = map(importlib.import_module, ("torch", "opacus.grad_sample", "opacus.optimizers"))
    plain, criterion, x, y = _torch(problem)
    inner = _torch(problem)[0]
    model = wrappers.GradSampleModule(inner)
    optimizer = optimizers.DPOptimizer(
        torch.optim.SGD(model.parameters()), noise_multiplier=0.0, max_grad_norm=CLIP, expected_batch_size=len(y)
    )

    def run() -> None:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.clip_and_accumulate()

    return Theirs(_gradient(plain, criterion, x, y), run, lambda: _values(inner, "summed_grad"))


def _vmap(problem: Problem, _: str) -> Theirs:
    """The norms of the gradients that `jax.vmap(jax.grad)` gives."""

    def norms(params: Params, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        def one(x: jax.Array, y: jax.Array) -> Params:
            return jax.grad(problem.objective)(params, (x[None], y[None]))

        squares = [jnp.sum(jnp.square(g.reshape(len(g), -1)), axis=1) for g in jax.tree.leaves(jax.vmap(one)(*batch))]
        return jnp.sqrt(sum(squares[1:], start=squares[0]))

    arguments = problem.params, problem.batch
    gradient = measure.compiled(jax.jit(jax.value_and_grad(problem.objective)), *arguments)
    program = measure.compiled(jax.jit(norms), *arguments)
    return Theirs(
        lambda: gradient.run(*arguments),
        lambda: program.run(*arguments),
        lambda: [np.asarray(program.run(*arguments))],
        program.temp_bytes,
    )


PEERS = {
    "backpack": Peer("BackPACK", "backpack-for-pytorch", ("torch", "backpack"), "PyTorch", _backpack),
    "opacus-ghost": Peer("Opacus, ghost", "opacus", ("torch", "opacus"), "PyTorch", _opacus_ghost),
    "opacus": Peer("Opacus, plain", "opacus", ("torch", "opacus"), "PyTorch", _opacus),
    "vmap": Peer("vmap(grad)", "jax", ("jax",), "jax.grad", _vmap),
}


def _torch(problem: Problem) -> tuple[Any, Any, Any, Any]:
    """The network with our parameters, the loss, and the batch."""
    torch = importlib.import_module("torch")
    nn, layers = torch.nn, []
    x, y = (torch.from_numpy(np.array(array)) for array in problem.batch)
    activation = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}[problem.activation]
    for layer in filter(None, problem.params):
        dense = nn.Linear(*layer["w"].shape, dtype=x.dtype)
        with torch.no_grad():
            dense.weight.copy_(torch.from_numpy(np.array(layer["w"]).T))
            dense.bias.copy_(torch.from_numpy(np.array(layer["b"])))
        layers += [dense, activation()]
    return nn.Sequential(*layers[:-1]), nn.CrossEntropyLoss(), x, y.long()


def _gradient(model: Any, criterion: Any, x: Any, y: Any) -> Callable[[], None]:
    def run() -> None:
        model.zero_grad()
        criterion(model(x), y).backward()

    return run


def _values(model: Any, field: str) -> list[Any]:
    """What each parameter was given under a name, in the order of our leaves: of a layer's bias, then of its weights.

    Arrays are those of our shapes; what is a list is left as it is.
    """
    found = []
    for layer in model:
        if hasattr(layer, "weight"):
            bias, weights = getattr(layer.bias, field), getattr(layer.weight, field)
            found += [bias, weights] if isinstance(bias, list) else [bias.numpy(), _turned(weights.numpy())]
    return found


def _turned(weights: np.ndarray) -> np.ndarray:
    """(..., K, D) as (..., D, K); what has one number for each example stays."""
    return weights if weights.ndim == 1 else weights.swapaxes(-1, -2)
