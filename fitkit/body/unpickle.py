"""Arrays out of a pickle that executes nothing: no class or function that the file names is ever imported.

Body files come as Python 2 pickles of numpy arrays, scipy sparse matrices and chumpy expressions. Here every such
name becomes an inert stand-in that only collects what the file says; `as_array` then reads plain numbers from it.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from typing import Any, ClassVar

import numpy as np

_SPARSE = re.compile(r"(csc|csr|coo)_(matrix|array)")
_NUMBER = re.compile(r"[<>=|]?([biufc])([0-9]+)")
_MOST = 1 << 24  # entries of a dense joint regressor: thirty times the largest
_DEEPEST = 20  # chumpy expressions in a body file are nested once or twice


class _Refused(ValueError):
    """The pickle asks for something that is not on the list."""


class _Inert:
    """Stands for an object of any class: keeps its state, does nothing."""

    origin: ClassVar[str] = ""
    state: dict[str, Any]

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        made = super().__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: object) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.state.update(part)
            elif part is not None:
                raise _Refused(f"state of {self.origin} is a {type(part).__name__}, expected a dict")


class _Dtype:
    """Stands for `numpy.dtype`."""

    def __init__(self, code: object = "", align: object = False, copy: object = False) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]
        if any(part is not None for part in state[2:5]):
            self.code = "V"

    def plain(self) -> np.dtype[Any] | None:
        """A dtype of numbers; None for Python objects."""
        if re.fullmatch(r"\|?O[48]?", self.code):
            return None
        if not _NUMBER.fullmatch(self.code):
            raise ValueError(f"dtype {self.code!r}, expected numbers")
        return np.dtype((self.order if self.order in ("<", ">") else "") + self.code.lstrip("<>=|"))


class _Array:
    """Stands for `numpy.ndarray`."""

    def __init__(self, *args: object) -> None:
        self.shape: Any = ()
        self.dtype: Any = None
        self.fortran: Any = False
        self.data: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.shape, self.dtype, self.fortran, self.data = state[-4:]


class _Call:
    """A function that a pickle may call; its attributes are out of the pickle's reach."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., object]) -> None:
        self._make = make

    def __call__(self, *args: object) -> object:
        return self._make(*args)

    def __setstate__(self, state: object) -> None:
        raise _Refused("it changes a function")


def _reconstruct(kind: object, shape: object, code: object) -> object:
    if kind is not _Array:
        raise _Refused(f"numpy array of type {kind!r}, expected ndarray")
    return _Array()


def _frombuffer(data: object, dtype: object, shape: object, order: object) -> object:
    made = _Array()
    made.shape, made.dtype, made.fortran, made.data = shape, dtype, order == "F", data
    return made


def _scalar(dtype: object, data: object = None) -> object:
    return _frombuffer([data] if isinstance(dtype, _Dtype) and "O" in dtype.code else data, dtype, (), "C")


def _reconstructor(kind: object, base: object, state: object) -> object:
    if not (isinstance(kind, type) and issubclass(kind, _Inert)):
        raise _Refused(f"object of type {kind!r}")
    return kind()


def _encode(text: object, encoding: object = "latin1") -> object:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused(f"text encoded as {encoding!r}, expected latin1")
    return text.encode("latin1")


def _empty_bytes() -> object:
    return b""


def _base() -> object:
    raise _Refused("a bare object")


# Everything a pickle may name, and what it gets instead. What is not here is refused.
_CONTAINERS: dict[str, object] = {
    "set": set,
    "frozenset": frozenset,
    "list": list,
    "tuple": tuple,
    "dict": dict,
    "object": _Call(_base),
    "bytes": _Call(_empty_bytes),
}
_KNOWN: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Call(_encode),
    ("collections", "OrderedDict"): OrderedDict,
    **{
        (module, name): value for module in ("builtins", "__builtin__") for name, value in _CONTAINERS.items()
    },
    **{(module, "_reconstructor"): _Call(_reconstructor) for module in ("copyreg", "copy_reg")},
    **{(f"{core}.multiarray", "_reconstruct"): _Call(_reconstruct) for core in ("numpy.core", "numpy._core")},
    **{(f"{core}.multiarray", "scalar"): _Call(_scalar) for core in ("numpy.core", "numpy._core")},
    **{(f"{core}.numeric", "_frombuffer"): _Call(_frombuffer) for core in ("numpy.core", "numpy._core")},
}


class _Unpickler(pickle._Unpickler):
    # The one in Python: the one in C makes room for whatever memo index a few bytes name, gigabytes of it.
    read: Callable[[int], bytes]
    append: Callable[[object], None]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        chumpy = module.split(".")[0] == "chumpy"
        if chumpy or (module.startswith("scipy.sparse") and _SPARSE.fullmatch(name)):
            return type("_Inert", (_Inert,), {"origin": f"{module}.{name}"})
        raise _Refused(f"it names {module}.{name}, which no body file needs")

    def _load_bytearray(self) -> None:
        """As inherited, but the bytes that are there, and not first as many zeros as the file claims."""
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _load_bytearray}


def load_pickle(data: bytes, origin: str) -> object:
    """What a pickle holds, with stand-ins for all but Python's own containers; `as_array` reads those.

    Args:
        data: the pickle, of Python 2 or 3.
        origin: names the file in messages.

    Raises:
        ValueError: not a pickle, cut short, or a pickle that names anything but arrays, sparse matrices and chumpy
            expressions.
    """
    try:
        return _Unpickler(BytesIO(data), encoding="latin1").load()
    except _Refused as error:
        raise ValueError(f"{origin}: refused, {error}. Nothing in the file was executed") from error
    except Exception as error:  # a damaged pickle fails in whatever opcode it was cut or changed
        raise ValueError(f"{origin}: not a pickle, or cut short ({type(error).__name__}: {error})") from error


def as_array(value: object) -> np.ndarray:
    """Numbers from what `load_pickle` gave: arrays, sparse matrices (made dense), chumpy values, lists.

    Raises:
        ValueError: not numbers, or sizes that contradict each other.
    """
    try:
        return _as_array(value, 0)
    except ValueError:
        raise
    except Exception as error:  # contents that contradict each other fail wherever they meet
        raise ValueError(f"broken contents ({type(error).__name__}: {error})") from error


def _as_array(value: object, depth: int) -> np.ndarray:
    if depth > _DEEPEST:
        raise ValueError(f"arrays nested deeper than {_DEEPEST}")
    if isinstance(value, _Array):
        return _from_array(value, depth)
    if isinstance(value, _Inert):
        if "x" in value.state:
            return _as_array(value.state["x"], depth + 1)
        if value.origin == "chumpy.reordering.Select":
            return _from_select(value, depth)
        if value.origin.startswith("scipy"):
            return _from_sparse(value, depth)
        raise ValueError(f"an expression {value.origin}, expected an array or chumpy.ch.Ch")
    if isinstance(value, (int, float, list, tuple)):
        array = np.array(value) if _numbers(value) else None
        if array is not None and array.dtype.kind in "biuf":
            return array
    raise ValueError(f"a {type(value).__name__}, expected an array")


def _numbers(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, (int, float)) for item in value)
    return isinstance(value, (int, float))


def _from_array(value: _Array, depth: int) -> np.ndarray:
    shape = value.shape
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"an array of shape {shape!r}")
    if not isinstance(value.dtype, _Dtype):
        raise ValueError("an array without a dtype")
    dtype, count = value.dtype.plain(), math.prod(shape)
    order: Any = "F" if value.fortran else "C"
    if dtype is None:
        if not isinstance(value.data, list) or len(value.data) != count:
            raise ValueError(f"an array of shape {shape} without its {count} objects")
        if shape == ():
            return _as_array(value.data[0], depth + 1)
        return _as_array(value.data, depth + 1).reshape(shape, order=order)
    data = value.data.encode("latin1") if isinstance(value.data, str) else value.data
    if not isinstance(data, (bytes, bytearray)) or len(data) != count * dtype.itemsize:
        size = len(data) if isinstance(data, (bytes, bytearray)) else "no"
        raise ValueError(f"an array {shape} of {dtype} with {size} bytes, expected {count * dtype.itemsize}")
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _from_select(value: _Inert, depth: int) -> np.ndarray:
    """chumpy's `a.ravel()[idxs].reshape(preferred_shape)`, what an indexed expression is stored as."""
    source, chosen = (_as_array(value.state[name], depth + 1) for name in ("a", "idxs"))
    shape = value.state.get("preferred_shape")
    return source.ravel()[chosen.ravel()].reshape(chosen.shape if shape is None else shape)


def _from_sparse(value: _Inert, depth: int) -> np.ndarray:
    layout, state = value.origin.rsplit(".", 1)[1][:3], value.state
    shape = tuple(int(size) for size in state["_shape"])
    data = _as_array(state["data"], depth + 1)
    if layout == "coo":
        places = state["coords"] if "coords" in state else (state["row"], state["col"])
        row, col = (_as_array(place, depth + 1) for place in places)
    else:
        minor, starts = (_as_array(state[name], depth + 1) for name in ("indices", "indptr"))
        if starts[0] != 0 or starts[-1] != len(minor) or (starts[1:] < starts[:-1]).any():
            raise ValueError(f"a sparse matrix whose {len(minor)} entries are not in order")
        major = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        row, col = (minor, major) if layout == "csc" else (major, minor)
    if len(shape) != 2 or math.prod(shape) > _MOST or min(row.min(initial=0), col.min(initial=0)) < 0:
        raise ValueError(f"a sparse matrix of shape {shape} with negative places, or too large")
    dense = np.zeros(shape, data.dtype)
    np.add.at(dense, (row, col), data)
    return dense
