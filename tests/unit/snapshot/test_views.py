"""Arrays that look at the same memory look at the same memory after a restore."""

from __future__ import annotations

import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wflo_nb.snapshot.engine import SnapshotEngine

Run = Callable[[str], None]


def back(engine: SnapshotEngine, ns: dict[str, Any]) -> dict[str, Any]:
    """Save, lose everything, restore."""
    names = [k for k in ns if not k.startswith("__")]
    engine.take("start")
    for name in names:
        ns[name] = None
    engine.restore("start")
    return ns


@pytest.mark.parametrize("length", [20, 20_000], ids=["in the stream", "beside it"])
@pytest.mark.parametrize(
    "look",
    [
        "a[2:9]",
        "a[::2]",
        "a[::-1]",
        "a.reshape(4, -1).T",
        "a.reshape(4, -1)[1:, 1:3]",
        "a.view('i4')",
        "a[3:4].reshape(())",
        "a[2:9][1:3]",
        "np.broadcast_to(a[5:6], (3,))",
    ],
)
def test_a_view_is_restored_over_its_owner(ns: dict[str, Any], engine: SnapshotEngine, look: str, length: int) -> None:
    a = np.arange(float(length))
    view = eval(look, {"a": a, "np": np})
    before = view.copy(), view.shape, view.strides, view.dtype, view.flags.writeable, view.__array_interface__["data"][0] - a.ctypes.data
    ns.update(a=a, v=view)
    back(engine, ns)
    a, v = ns["a"], ns["v"]
    assert np.array_equal(v, before[0])
    assert (v.shape, v.strides, v.dtype, v.flags.writeable, v.__array_interface__["data"][0] - a.ctypes.data) == before[1:]
    base = v
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert base is a and a.flags.owndata
    a[...] = 7
    assert np.array_equal(v, np.full_like(a, 7).view(v.dtype)[: v.size].reshape(v.shape)) or v.dtype == "i4"


def test_views_share_with_each_other_when_the_owner_has_no_name(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    owner = np.arange(10_000)
    ns.update(a=owner[10:50], b=owner[40:60])
    del owner
    back(engine, ns)
    assert ns["a"][30] == ns["b"][0] == 40
    ns["a"][30] = -1
    assert ns["b"][0] == -1


def test_a_small_view_does_not_keep_a_huge_owner(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    owner = np.random.default_rng(0).random(1_000_000)
    ns["small"] = owner[5:15]
    wanted = ns["small"].copy()
    del owner
    info = engine.take("start")
    assert info.bytes_total < 2000
    ns["small"] = None
    engine.restore("start")
    assert np.array_equal(ns["small"], wanted)
    assert ns["small"].base is None


def test_parts_of_one_memory_are_saved_with_their_part_only(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    owner = np.random.default_rng(0).random(1_000_000)
    ns.update(a=owner[10:20], b=owner[15:25])
    del owner
    assert engine.take("start").bytes_total < 3000


def test_a_broadcast_is_saved_as_little_as_it_is(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    ns["wide"] = np.broadcast_to(np.arange(3.0), (1_000_000_000, 3))
    ns["windows"] = np.lib.stride_tricks.sliding_window_view(np.arange(50_000.0), 10_000)
    assert engine.take("start").bytes_total < 500_000
    ns["wide"] = ns["windows"] = None
    engine.restore("start")
    assert ns["wide"].shape == (1_000_000_000, 3) and ns["wide"][-1].tolist() == [0, 1, 2] and ns["windows"][7, 5] == 12


def test_buffers_of_python_are_shared_too(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    raw = bytearray(range(64))
    numbers = array.array("d", [1, 2, 3])
    ns.update(
        raw=raw,
        a=np.frombuffer(raw, "u1")[8:],
        m=memoryview(raw)[4:40:4],
        w=memoryview(raw)[8:24].cast("I"),
        numbers=numbers,
        n=np.frombuffer(numbers),
    )
    back(engine, ns)
    ns["raw"][8] = 200
    assert ns["a"][0] == 200 and ns["m"][1] == 200 and ns["w"][0] & 0xFF == 200
    assert ns["m"].tolist() == [4, 200, 12, 16, 20, 24, 28, 32, 36] and ns["m"].obj is ns["raw"]
    ns["numbers"][1] = 9.5
    assert ns["n"].tolist() == [1, 9.5, 3]


def test_a_memoryview_alone_and_read_only_ones_come_back(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    ns.update(a=memoryview(b"abcdef")[2:], b=memoryview(bytearray(b"abcdef"))[::-1], c=memoryview(np.arange(6.0).reshape(2, 3)))
    back(engine, ns)
    assert ns["a"] == b"cdef" and ns["a"].readonly
    assert bytes(ns["b"]) == b"fedcba" and not ns["b"].readonly
    assert ns["c"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "value",
    [
        np.array(3.5),
        np.zeros((0, 4)),
        np.arange(6).reshape(2, 3).T,
        np.asfortranarray(np.arange(10_000.0).reshape(100, 100)),
        np.array(["ab", "c"]),
        np.array([b"ab", b"c"] * 3000),
        np.array(["2026-01-01"], "M8[D]"),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array([1, "x", None, [2]], object),
        np.arange(5, dtype=">i2"),
        np.array([True, False]),
        np.zeros(3, "c16"),
        np.array(["ä", "longer"], dtype=np.dtypes.StringDType()),
        np.ma.array([1, 2, 3], mask=[0, 1, 0]),
        np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    ],
    ids=lambda v: f"{type(v).__name__} {v.dtype}",
)
def test_every_kind_of_array_comes_back(ns: dict[str, Any], engine: SnapshotEngine, value: Any) -> None:
    ns["value"] = value
    back(engine, ns)
    restored = ns["value"]
    assert type(restored) is type(value) and restored.dtype == value.dtype and restored.shape == value.shape
    assert repr(restored) == repr(value)
    assert restored.flags.f_contiguous == value.flags.f_contiguous


def test_read_only_arrays_stay_read_only(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    a = np.arange(5)
    a.flags.writeable = False
    ns.update(a=a, v=a[1:])
    back(engine, ns)
    assert not ns["a"].flags.writeable and not ns["v"].flags.writeable


def test_views_of_object_arrays_share(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    a = np.array([[1, "x"], [None, []]], object)
    ns.update(a=a, v=a[1], t=a.T)
    back(engine, ns)
    ns["a"][1, 0] = "new"
    assert ns["v"][0] == "new" and ns["t"][0, 1] == "new"


def test_a_mapped_file_is_not_copied(ns: dict[str, Any], engine: SnapshotEngine, tmp_path: Any) -> None:
    ns["m"] = np.memmap(tmp_path / "data", "u1", "w+", shape=(5_000_000,))
    info = engine.take("start")
    assert info.bytes_total == 0 and "mapped to a file" in info.left_out["m"]


def test_a_frame_and_the_array_it_was_built_over(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    a = np.arange(12.0).reshape(3, 4).copy()
    ns.update(a=a, df=pd.DataFrame(a, copy=False))
    assert np.shares_memory(ns["df"].to_numpy(), a)
    back(engine, ns)
    ns["a"][0, 0] = 42
    assert ns["df"].iloc[0, 0] == 42


def test_copy_on_write_goes_on_to_protect(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    df = pd.DataFrame({"x": [1, 2], "y": [1.5, 2.5]})
    ns.update(df=df, column=df["x"], shallow=df.copy(deep=False), indexed=df.set_index("x"), made=pd.Series(pd.Index([7, 8])))
    back(engine, ns)
    ns["df"].loc[0, "x"] = 99
    ns["column"].iloc[1] = 77
    assert ns["df"]["x"].tolist() == [99, 2]
    assert ns["column"].tolist() == [1, 77]
    assert ns["shallow"]["x"].tolist() == [1, 2]
    assert ns["indexed"].index.tolist() == [1, 2] and ns["indexed"].loc[1, "y"] == 1.5


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame(),
        pd.DataFrame({"s": ["a", None], "i": [1, 2], "c": pd.Categorical(["u", "v"])}, index=pd.Index(["p", "q"], name="key")),
        pd.DataFrame({"t": pd.date_range("2026-01-01", periods=3, tz="UTC")}).set_index("t", drop=False),
        pd.DataFrame(np.arange(8).reshape(2, 4), columns=pd.MultiIndex.from_product([["a", "b"], [1, 2]])),
        pd.DataFrame({"n": pd.array([1, None], dtype="Int64"), "o": [[1], {"k": 2}]}),
        pd.Series([1.0, np.nan], name="x").rename_axis("i"),
        pd.Series(pd.interval_range(0, 3)),
        pd.Series(pd.arrays.SparseArray([0, 0, 1])),
    ],
    ids=lambda f: "-".join(map(str, np.atleast_1d(f.dtypes if f.ndim == 2 else f.dtype))) or "empty",
)
def test_every_kind_of_frame_comes_back(ns: dict[str, Any], engine: SnapshotEngine, frame: Any) -> None:
    ns["frame"], expected = frame, frame.copy()
    back(engine, ns)
    check = pd.testing.assert_frame_equal if frame.ndim == 2 else pd.testing.assert_series_equal
    check(ns["frame"], expected)
    assert engine.take("again").new_bytes == 0
