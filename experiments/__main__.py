"""`python -m experiments`: what there is, a line for each script; `python -m experiments all` runs those on claims."""

import importlib
import pkgutil
import signal
import sys
import types
from collections.abc import Iterator, Sequence

import experiments
from experiments import benchmarks, gallery


def main(argv: Sequence[str] | None = None) -> int:
    """Prints each command and the first line of its docstring."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["all"]:
        return gallery.run(words[1:])
    if words and words[0] not in ("-h", "--help"):
        known = {one.__name__.rpartition(".")[2]: one.__name__ for one in runnable()}
        hint = f": run python -m {known[words[0]]}" if words[0] in known else "; without a word it lists what there is"
        print(f"error: python -m experiments takes all, got {words[0]!r}{hint}", file=sys.stderr)
        return 2
    print(f"python -m experiments all\n    {(gallery.__doc__ or '').partition(chr(10))[0]}")
    for module in runnable():
        print(f"python -m {module.__name__}\n    {(module.__doc__ or '').partition(chr(10))[0]}")
    return 0


def runnable() -> Iterator[types.ModuleType]:
    """The scripts; a module without a `main` is a part of one."""
    for package in (experiments, benchmarks):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not (found.ispkg or "._" in found.name or found.name.endswith("__main__")):
                module = importlib.import_module(found.name)
                if hasattr(module, "main"):
                    yield module


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE") and sys.argv[1:2] != ["all"]:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    raise SystemExit(main())
