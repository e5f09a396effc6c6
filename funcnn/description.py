"""A description: an immutable value that compares, hashes, prints and round-trips through JSON.

Layers, losses, penalties and objectives are descriptions. What they hold is numbers, strings, tuples and other
descriptions; a user's own function is allowed too and costs only the JSON.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Self


@dataclasses.dataclass(frozen=True)
class Description:
    """Base of every description: a frozen dataclass whose `repr` is the code that makes it.

    Example:
        >>> import funcnn as fnn
        >>> fnn.Serial(fnn.Dense(3, bias=False), fnn.Relu())
        Serial(Dense(3, bias=False), Relu())
        >>> fnn.Dense(3) == fnn.Dense(features=3)
        True
    """

    starred: ClassVar[str | None] = None  # the one field that the constructor takes as *args, if any

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        own = cls.__dict__
        if "__dataclass_fields__" not in own and ("__init__" in own or own.get("__annotations__")):
            # It would compare by what its base holds: two that differ would be equal, and share compiled programs.
            raise TypeError(f"{cls.__name__} is no dataclass: put @dataclasses.dataclass(frozen=True) above the class")
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # @dataclass writes a long repr into each subclass that has none of its own: give it ours first.
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = cls.__mro__[1].__repr__  # pyright: ignore[reportAttributeAccessIssue]

    def __repr__(self) -> str:
        return f"{self._code_name()}({', '.join(self._arguments())})"

    def _code_name(self) -> str:
        return type(self).__qualname__

    def _arguments(self) -> Iterator[str]:
        positional = True  # the leading fields without a default read best by position
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            positional = positional and field.default is dataclasses.MISSING
            if field.name == self.starred:
                yield from map(repr, value)
            elif positional:
                yield repr(value)
            elif not _same(value, field.default):
                yield f"{field.name}={value!r}"

    def replace(self, **changes: Any) -> Self:
        """The same description with some fields changed: `Dense(8).replace(bias=False) == Dense(8, bias=False)`."""
        known = {f.name for f in dataclasses.fields(self)}
        if unknown := set(changes) - known:
            raise TypeError(
                f"{self._code_name()} has no field {', '.join(sorted(unknown))}; its fields are {sorted(known)}"
            )
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | changes
        stars = values.pop(self.starred) if self.starred else ()
        return type(self)(*stars, **values)


def to_json(description: Description) -> str:
    """The description as JSON text that `from_json` reads back.

    Raises:
        TypeError: a field holds something that is no value, such as a function; the message names the field.

    Example:
        >>> import funcnn as fnn
        >>> fnn.to_json(fnn.Serial(fnn.Dense(2), fnn.Tanh()))
        '{"type": "Serial", "layers": [{"type": "Dense", "features": 2}, {"type": "Tanh"}]}'
    """
    return json.dumps(_encode(description, type(description).__name__))


def from_json(text: str, types: Iterable[type[Description]] = ()) -> Any:
    """The description that `to_json` wrote. Runs no code but the constructors of known description types.

    Args:
        text: what `to_json` returned.
        types: your own description types that the text may name, beside those of funcnn.

    Raises:
        ValueError: the text is no JSON of a description, or names a type or field that is not known.

    Example:
        >>> import funcnn as fnn
        >>> fnn.from_json('{"type": "Dense", "features": 2}')
        Dense(2)
    """
    known = {cls.__name__: cls for cls in _subclasses(Description) if cls.__module__.startswith("funcnn.")}
    known |= {cls.__name__: cls for cls in types}
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not a description: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"not a description: expected an object with a 'type', got {type(data).__name__}")
    return _decode(data, known)


def _encode(value: Any, where: str) -> Any:
    if isinstance(value, Description):
        held = {f.name: (getattr(value, f.name), f.default) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__} | {
            name: _encode(v, f"{where}.{name}") for name, (v, default) in held.items() if not _same(v, default)
        }
    if isinstance(value, tuple):
        return [_encode(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where} holds {value!r}, which has no JSON form: describe it by a name or by a description")


def _decode(value: Any, known: dict[str, type[Description]]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(v, known) for v in value)
    if not isinstance(value, dict):
        return value
    name = value.get("type")
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"unknown description type {name!r}; pass your own as from_json(text, types=[...])")
    cls = known[name]
    fields = {k: _decode(v, known) for k, v in value.items() if k != "type"}
    if unknown := set(fields) - {f.name for f in dataclasses.fields(cls)}:
        raise ValueError(f"{name} has no field {', '.join(sorted(unknown))}")
    stars = fields.pop(cls.starred, ()) if cls.starred else ()
    try:
        return cls(*stars, **fields)
    except TypeError as error:
        raise ValueError(f"{name} cannot be made from {fields}: {error}") from error


def _same(value: Any, default: Any) -> bool:
    # 1 == 1.0 == True, yet they print differently: the default is left out only for the very same value.
    return type(value) is type(default) and value == default


def _subclasses(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)
