"""One of several processes that train together: `python tests/train/process.py NUMBER OF PORT FOLDER EPOCHS`.

With OF = 1 it trains alone, on all of the data. Writes the parameters and the history to FOLDER.
"""

import pathlib
import sys
from typing import Any

import jax
import numpy as np


def main(number: int, of: int, port: int, folder: pathlib.Path, epochs: int) -> None:
    jax.config.update("jax_num_cpu_devices", 4 // of)
    if of > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", num_processes=of, process_id=number)
    import optax

    import funcnn as fnn

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 6)).astype(np.float32), rng.integers(0, 4, 40).astype(np.int32)
    batches = np.arange(40).reshape(5, of, 8 // of)  # of each batch of 8, each process has its part

    def part(epoch: int):
        for rows in batches[:, number]:
            yield x[rows], y[rows]

    net = fnn.Serial(fnn.Dense(16), fnn.Relu(), fnn.Dropout(0.2), fnn.Dense(4))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    state, history = fnn.train.fit(
        fnn.Objective(net, fnn.losses.softmax_cross_entropy),
        optax.adam(1e-2),
        net.init(jax.random.key(0), (6,)),
        part,
        epochs=epochs,
        batch_size=8 // of,
        key=jax.random.key(1),
        valid=(x[:20][number::of], y[:20][number::of]),
        metrics={"accuracy": fnn.train.accuracy},
        mesh=mesh,
        param_sharding=fnn.train.fully_sharded("data"),
        checkpoints=fnn.train.Checkpoints(folder / "checkpoints", every_epochs=1),
        chunk_steps=2,
        progress=None,
    )
    whole = jax.jit(lambda params: params, out_shardings=jax.NamedSharding(mesh, jax.P()))(state.params)
    if number == 0:
        seen: dict[str, Any] = {name: history[name] for name in history if name != "seconds"}
        leaves: dict[str, Any] = {f"p{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(whole))}
        np.savez(folder / f"of{of}.npz", **leaves, **seen)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), pathlib.Path(sys.argv[4]), int(sys.argv[5]))
