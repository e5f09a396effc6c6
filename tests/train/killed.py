"""A run that a test kills: it saves as often as it can, and says where it is."""

import os
import pathlib
from multiprocessing.connection import Connection
from typing import Any


def main(folder: pathlib.Path, cache: pathlib.Path, every_steps: int | None, told: Connection) -> None:
    """Trains from the newest checkpoint to the end, and writes what came out to `folder`."""
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    import jax
    import numpy as np
    import optax

    import funcnn as fnn

    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((100, 6)).astype(np.float32), rng.integers(0, 4, 100).astype(np.int32)
    net = fnn.Serial(fnn.Dense(64), fnn.Relu(), fnn.Dropout(0.2), fnn.Dense(4))

    class Told:
        """Passes on where the run is."""

        def begin(self, steps: int | None, epochs: int, done: int) -> None:
            told.send(("from", done))

        def update(self, step: int, epoch: int, row: dict[str, float], rate: float) -> None:
            told.send(("at", step))

        def end(self) -> None: ...

    checkpoints: Any = None
    if every_steps is not None:
        checkpoints = fnn.train.Checkpoints(folder / "checkpoints", every_steps=every_steps)
    state, history = fnn.train.fit(
        fnn.Objective(net, fnn.losses.softmax_cross_entropy),
        optax.adam(1e-2),
        net.init(jax.random.key(0), (6,)),
        (x, y),
        epochs=60,
        batch_size=10,
        key=jax.random.key(1),
        valid=(x[:50], y[:50]),
        checkpoints=checkpoints,
        progress=Told(),
    )
    leaves: dict[str, Any] = {
        f"p{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves((state.params, state.opt_state)))
    }
    np.savez(folder / "end.npz", **leaves, loss=history["loss"], valid=history["valid loss"], steps=history.step_loss)
    told.send(("end", int(state.step)))
