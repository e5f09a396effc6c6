"""`python -m experiments`: what there is, a line for each script."""

import importlib
import pkgutil

import experiments
from experiments import benchmarks


def main() -> None:
    """Prints each command and the first line of its docstring; a module without a `main` is a part of one."""
    for package in (experiments, benchmarks):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if found.ispkg or "._" in found.name:
                continue
            module = importlib.import_module(found.name)
            if hasattr(module, "main"):
                claim = (module.__doc__ or "").partition("\n")[0]
                print(f"python -m {found.name}\n    {claim}")


if __name__ == "__main__":
    main()
