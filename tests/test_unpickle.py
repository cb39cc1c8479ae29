"""Pickles of arrays are read without executing anything; whatever else a pickle asks for is refused."""

from __future__ import annotations

import builtins
import functools
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from fitkit.body.smpl import read_smpl
from fitkit.body.unpickle import as_array, load_pickle


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "matrix", [sparse.csc_matrix, sparse.csr_matrix, sparse.coo_matrix, sparse.csc_array, sparse.coo_array]
)
def test_every_protocol_and_sparse_layout(protocol: int, matrix: Callable[..., Any]) -> None:
    random = np.random.default_rng(0)
    dense = random.random((24, 60)) * (random.random((24, 60)) < 0.1)
    arrays: dict[str, Any] = {
        "float64": random.random((5, 3, 10)),
        "float32": random.random((5, 3)).astype(np.float32),
        "uint32": random.integers(0, 2**32, (7, 3)).astype(np.uint32),
        "big-endian": random.random(9).astype(">f8"),
        "columns first": np.asfortranarray(random.random((4, 6, 5))),
        "read only": np.frombuffer(random.bytes(80)[:80], np.uint8),
        "empty": np.zeros((0, 3)),
        "scalar": np.float64(3.5),
        "objects": np.arange(6.0).reshape(2, 3).astype(object),
    }
    content: Any = load_pickle(
        pickle.dumps(arrays | {"sparse": matrix(dense), "text": "hi"}, protocol), "here"
    )
    for name, array in arrays.items():
        np.testing.assert_array_equal(
            as_array(content[name]), array, strict=name not in ("scalar", "objects", "big-endian")
        )
    np.testing.assert_array_equal(as_array(content["sparse"]), dense)
    assert content["text"] == "hi"
    with pytest.raises(ValueError, match="a str, expected an array"):
        as_array(content["text"])


def test_contradicting_sizes_are_refused() -> None:
    """A pickle may claim any shape for few bytes, and any place for an entry of a sparse matrix."""
    whole = pickle.dumps(np.zeros((3, 4)), 2)
    for size in (5, 255):
        with pytest.raises(
            ValueError, match=rf"an array \({size}, 4\) of float64 with 96 bytes, expected {32 * size}"
        ):
            as_array(load_pickle(whole.replace(b"K\x03K\x04", bytes([75, size]) + b"K\x04"), "here"))
    for change in (
        {"indptr": [0, 9, 1, 3]},
        {"indices": [0, 1, 7]},
        {"indices": [0, -1, 1]},
        {"_shape": (1 << 20, 1 << 20)},
    ):
        broken = sparse.csc_matrix(np.eye(3))
        for name, value in change.items():
            setattr(broken, name, np.array(value, np.int32) if isinstance(value, list) else value)
        with pytest.raises(ValueError, match=r"sparse matrix|broken contents"):
            as_array(load_pickle(pickle.dumps(broken, 2), "here"))


class Hostile:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def _attacks(trap: Path) -> dict[str, bytes]:
    touch = f"open({str(trap)!r}, 'w').close()"
    body: dict[str, object] = {"v_template": np.zeros((4, 3))}
    deep = body | {"extra": [{"deeper": (1, Hostile(os.system, f"touch {trap}"))}]}
    array = np.empty((1,), object)
    array[0] = Hostile(builtins.eval, touch)
    return {
        "os.system": pickle.dumps(Hostile(os.system, f"touch {trap}"), 2),
        "nested": pickle.dumps(deep, 4),
        "builtins.exec": pickle.dumps(Hostile(exec, touch)),
        "in an object array": pickle.dumps(body | {"v_template": array}),
        "getattr": pickle.dumps(Hostile(getattr, "x", "__class__")),
        "partial": pickle.dumps(functools.partial(os.system, f"touch {trap}")),
        "python 2": b"cos\nsystem\n(S'touch " + str(trap).encode() + b"'\ntR.",
        "numpy loader": b"cnumpy\nload\n(S'" + str(trap).encode() + b"'\ntR.",
        "numpy runner": b"cnumpy.testing._private.utils\nrunstring\n(S'" + touch.encode() + b"'\n}tR.",
        "array subclass": b"cnumpy.core.multiarray\n_reconstruct\n(c__builtin__\nset\n(K\x00tU\x01btR.",
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
        "changes a function": b"ccopy_reg\n_reconstructor\n}(U\x01x\x4b\x01ub.",
        "rebuilds a stranger": b"ccopy_reg\n_reconstructor\n(c__builtin__\ndict\nc__builtin__\nobject\nNtR.",
        "persistent": b"Pabc\n.",
        "memory": b"\x80\x02Nr\xff\xff\xff\xff.",
        "zeros": b"\x80\x05\x96\x00\x00\x00\x00\x05\x00\x00\x00.",
    }


@pytest.mark.parametrize("attack", sorted(_attacks(Path("unused"))))
def test_hostile_pickles_execute_nothing(tmp_path: Path, attack: str) -> None:
    trap = tmp_path / "trap"
    path = tmp_path / "SMPL_NEUTRAL.pkl"
    path.write_bytes(_attacks(trap)[attack])
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        read_smpl(path)
    assert not trap.exists()
    assert attack in ("persistent", "memory", "zeros") or "Nothing in the file was executed" in str(
        error.value
    )


def test_hostile_refusal_names_the_global(tmp_path: Path) -> None:
    path = tmp_path / "SMPL_NEUTRAL.pkl"
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(
        ValueError, match=r"os\.system, which no body file needs. Nothing in the file was executed"
    ):
        read_smpl(path)
    keys = "kintree_table v_template shapedirs posedirs weights J_regressor f".split()
    members = {key: np.zeros(3) for key in keys} | {
        "J_regressor": np.array([Hostile(exec, "1")], dtype=object)
    }
    np.savez(tmp_path / "body.npz", **members)
    with pytest.raises(ValueError, match=r"body.npz: J_regressor: refused, it names builtins.exec"):
        read_smpl(tmp_path / "body.npz")
