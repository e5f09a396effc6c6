"""PyTorch, eager or compiled as the command line says. Rows are indexed, which is faster than its DataLoader."""

import copy
import importlib
import itertools
from typing import Any

import numpy as np

from experiments.benchmarks.loops.worker import Loop, serve
from experiments.benchmarks.networks import LEARNING_RATE, Network

torch: Any = importlib.import_module("torch")


def make(network: Network, x: np.ndarray, y: np.ndarray, mode: str) -> Loop:
    """zero_grad, backward, step for each batch."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as JAX has it there unless told otherwise
    nn = torch.nn
    layers = [part for shape in itertools.pairwise(network.sizes) for part in (nn.Linear(*shape), nn.ReLU())]
    model = nn.Sequential(*layers[:-1]).to(device)
    initial = copy.deepcopy(model.state_dict())
    forward = torch.compile(model) if mode == "compiled" else model
    loss_fn = nn.MSELoss() if network.regression else nn.CrossEntropyLoss()
    images = torch.from_numpy(x).to(device)
    answers = torch.from_numpy(y if network.regression else y.astype(np.int64)).to(device)

    def start() -> Any:
        model.load_state_dict(initial)
        return torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def train(optimizer: Any, epochs: int) -> tuple[float, float]:
        loss = metric = float("nan")
        for _ in range(epochs):
            losses, metrics = [], []
            for rows in torch.randperm(len(images), device=device).split(network.batch):
                x, y = images[rows], answers[rows]
                optimizer.zero_grad()
                outputs = forward(x)
                value = loss_fn(outputs, y)
                value.backward()
                optimizer.step()
                losses.append(value.detach())
                if not network.regression:
                    metrics.append((outputs.detach().argmax(1) == y).float().mean())
            loss = torch.stack(losses).mean().item()
            metric = torch.stack(metrics).mean().item() if metrics else loss
        return loss, metric

    return Loop(start, train)


if __name__ == "__main__":
    serve(make)
