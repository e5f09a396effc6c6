"""`python -m experiments`: what there is, a line for each script; `python -m experiments all` runs those on claims."""

import importlib
import pkgutil
import sys
from collections.abc import Sequence

import experiments
from experiments import benchmarks, gallery


def main(argv: Sequence[str] | None = None) -> int:
    """Prints each command and the first line of its docstring; a module without a `main` is a part of one."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["all"]:
        return gallery.run(words[1:])
    if words:
        print(f"error: python -m experiments takes nothing, or all, got {' '.join(words)!r}", file=sys.stderr)
        return 2
    print(f"python -m experiments all\n    {(gallery.__doc__ or '').partition(chr(10))[0]}")
    for package in (experiments, benchmarks):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if found.ispkg or "._" in found.name:
                continue
            module = importlib.import_module(found.name)
            if hasattr(module, "main"):
                claim = (module.__doc__ or "").partition("\n")[0]
                print(f"python -m {found.name}\n    {claim}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
