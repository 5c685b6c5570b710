"""Tracks which data classes an array descends from, as a property of the value.

Every loader of examples and every endpoint for inputs returns `Traced` arrays. Views, casts, slices, arithmetic
and our own byte encodings keep the origin; only a computation with trained weights or a training step makes
something new. The frame encoder asks `origins_of`, so no label has to be remembered by the code in between.

What keeps the origin: views (also `np.asarray` and `.view(np.ndarray)`), slices, casts, arithmetic, every numpy function,
`tobytes`, memoryviews, pickles and deep copies. What loses it, because numpy or Python copies bytes without asking:
`np.array(x)`, `np.asarray(x).copy()`, `np.ascontiguousarray` of a strided array, assignment into an untraced array, `tolist`, `bytearray`, other libraries' encoders.
Code that does one of these between a loader and a frame marks its result with `traced(result, *origins_of(source))`;
`docs/security.md` says what the second fence is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Origins = frozenset[str]
"""Data classes, e.g. {"raw"}; empty for what descends from no data source."""

RAW = "raw"
_WRITERS = frozenset((np.copyto, np.put, np.place, np.putmask, np.put_along_axis, np.fill_diagonal))
"""Numpy functions that write into their first argument."""


class TracedBytes(bytes):
    """Holds bytes and the data classes they descend from."""

    origins: Origins

    def __new__(cls, data: bytes, origins: Iterable[str] = ()) -> TracedBytes:
        made = super().__new__(cls, data)
        made.origins = frozenset(origins) | getattr(data, "origins", frozenset())
        return made

    def __bytes__(self) -> TracedBytes:
        return self

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return TracedBytes(found, self.origins) if isinstance(found, bytes) else found

    def __add__(self, other: Any) -> TracedBytes:
        return TracedBytes(super().__add__(other), self.origins | origins_of(other))

    def __radd__(self, other: bytes) -> TracedBytes:
        return TracedBytes(other + bytes(memoryview(self)), self.origins | origins_of(other))

    def join(self, parts: Iterable[Any]) -> TracedBytes:
        """Joins parts as `bytes.join` does and unites their origins."""
        parts = list(parts)
        return TracedBytes(super().join(parts), self.origins | origins_of(*parts))

    def __reduce__(self) -> Any:
        return TracedBytes, (bytes(memoryview(self)), sorted(self.origins))


class _Held(np.ndarray):
    """Separates a plain array from its traced view.

    Numpy skips bases of the same type: a plain view of a traced view of a plain array would point at the plain array,
    past the traced one. With another type in between it points at the traced one.
    """


class Traced(np.ndarray):
    """Is a numpy array that carries the data classes it descends from.

    Example:
        >>> image = traced(np.zeros((8, 8), np.float32), RAW)
        >>> sorted(origins_of((image[1:] * 2).astype(np.uint8).tobytes()))
        ['raw']
    """

    origins: Origins

    def __array_finalize__(self, obj: Any) -> None:
        self.origins = getattr(obj, "origins", frozenset())

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        origins = origins_of(*inputs)
        out = kwargs.pop("out", None)
        if out is not None:
            kwargs["out"] = tuple(_plain(o) for o in out)
        result = getattr(ufunc, method)(*(_plain(i) for i in inputs), **{k: _plain(v) for k, v in kwargs.items()})
        for target in out or ():
            if isinstance(target, Traced):
                target.origins = target.origins | origins
        return _marked(result, origins)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        origins = frozenset().union(*(origins_of(a) for a in _walk((args, kwargs))))
        targets = [kwargs.get("out"), args[0] if func in _WRITERS else None]
        for target in targets:
            if isinstance(target, Traced):
                target.origins = target.origins | origins
        return _marked(func(*_strip(args), **_strip(kwargs)), origins)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.origins = self.origins | origins_of(value)
        super().__setitem__(index, value)

    def __deepcopy__(self, memo: Any) -> Any:
        return traced(_plain(self).copy(), *self.origins)

    def __reduce__(self) -> Any:
        return _restore, (_plain(self).copy(), sorted(self.origins))

    def tobytes(self, *args: Any, **kwargs: Any) -> TracedBytes:
        """Returns the array's bytes with its origins."""
        return TracedBytes(_plain(self).tobytes(*args, **kwargs), self.origins)


def traced(array: Any, *origins: str) -> NDArray[Any]:
    """Marks an array as descending from data classes.

    Args:
        array: Any array; it is not copied.
        *origins: Data classes, e.g. `RAW`.

    Returns:
        A view that carries the union of its own and the new origins.
    """
    return _view(np.asarray(array), origins_of(array) | frozenset(origins))


def origins_of(*values: Any) -> Origins:
    """Returns the data classes that values descend from.

    Args:
        *values: Arrays (also plain views of traced ones), bytes, memoryviews, or anything else.

    Returns:
        The union of their origins; empty where nothing is known.
    """
    found: Origins = frozenset()
    for value in values:
        current = value
        while current is not None:
            kind = type(current)
            if kind is np.ndarray:
                current = current.base
                continue
            if kind is bytes:
                break
            found |= getattr(current, "origins", frozenset())
            current = current.obj if kind is memoryview else getattr(current, "base", None)
    return found


def derived(array: Any) -> NDArray[Any]:
    """Returns an untraced copy of an array that a computation with trained weights produced.

    Called in two places only, the stage runner and local training; the data policy then treats it
    by what it is (a feature, an update), no longer by what it was computed from.

    Args:
        array: Any array.

    Returns:
        An untraced copy; whoever made the array may use its memory again.
    """
    return np.array(_plain(array), copy=True, subok=False)


def _restore(array: NDArray[Any], origins: Iterable[str]) -> NDArray[Any]:
    return traced(array, *origins)


def _view(array: NDArray[Any], origins: Origins) -> Traced:
    view = cast(Traced, array.view(_Held).view(Traced))
    view.origins = origins
    return view


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, Traced) else value


def _strip(value: Any) -> Any:
    if isinstance(value, Traced):
        return _plain(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_strip(v) for v in value)
    if isinstance(value, dict):
        return {k: _strip(v) for k, v in value.items()}
    return value


def _walk(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _walk(inner)
    elif isinstance(value, dict):
        yield from _walk(list(value.values()))
    else:
        yield value


def _marked(result: Any, origins: Origins) -> Any:
    if isinstance(result, tuple):
        return tuple(_marked(r, origins) for r in result)
    if isinstance(result, list):
        return [_marked(r, origins) for r in result]
    if isinstance(result, np.ndarray) and origins:
        return _view(result, origins | origins_of(result))
    return result
