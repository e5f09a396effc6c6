"""`python -m experiments`: what there is, a line for each script."""

import importlib
import pkgutil

import experiments


def main() -> None:
    """Prints each experiment's command and the first line of its docstring."""
    for module in pkgutil.iter_modules(experiments.__path__, "experiments."):
        if not (module.ispkg or "._" in module.name):
            claim = (importlib.import_module(module.name).__doc__ or "").partition("\n")[0]
            print(f"python -m {module.name}\n    {claim}")


if __name__ == "__main__":
    main()
