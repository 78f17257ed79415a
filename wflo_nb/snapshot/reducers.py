"""How objects become bytes: a cloudpickle pickler that keeps sharing, live globals and references.

This is the one module of the room that is about cloudpickle; it is imported at the first snapshot. Exact builtin containers and
scalars never reach `reducer_override`, so plain data is saved at the speed of C.
"""

from __future__ import annotations

import array
import copyreg
import enum
import functools
import gc
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

import cloudpickle

from wflo_nb import credentials
from wflo_nb.snapshot import rebuild, references
from wflo_nb.snapshot.memory import Layout, Segment, exposed, is_plain, root_of, start_of
from wflo_nb.snapshot.rebuild import is_importable
from wflo_nb.snapshot.ties import changed_under_walk, module_of, name_of, why_tied

#: Smaller buffers stay in the stream.
OUT_OF_BAND = 4096

_HEAP_TYPE = 1 << 9
_CACHED = type(functools.cache(len))
_SKELETONS = {"_make_skeleton_class", "_make_skeleton_enum"}


def _stays_in_stream(buffer: pickle.PickleBuffer, beside: list[Any]) -> bool:
    """Take a buffer of another library out of the stream if it is worth it. True leaves it in."""
    try:
        raw = buffer.raw()
    except BufferError:
        return True
    if raw.nbytes < OUT_OF_BAND:
        return True
    beside.append(raw)
    return False


class Reducer(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle ships no types
    """Reduces what is not a plain container. `layout` is None while it is still being found out.

    Attributes:
        arrays: raw memory of arrays, by the index that the stream names.
        buffers: out-of-band buffers of other libraries, in order.
        texts: those of the arrays that may hold text.
        has_code: functions or classes were saved by value, so the bytes belong to one Python version.
    """

    def __init__(self, file: Any, namespace: Any, hold: references.Hold, layout: Layout | None) -> None:
        buffers: list[Any] = []
        # A method of this object as callback would tie it into a cycle, and all that it saw would live until the next collection.
        super().__init__(file, protocol=5, buffer_callback=lambda buffer: _stays_in_stream(buffer, buffers))
        self.namespace = namespace
        self.hold = hold
        self.layout = layout
        self.arrays: list[Any] = []
        self.buffers = buffers
        self.texts: list[Any] = []
        self.has_code = False

    # -- what subclasses learn ------------------------------------------------------------------------------------------------

    def on_reference(self, thing: object, reason: str) -> None:
        """An object is kept by reference."""

    def on_leaf(self, thing: object) -> None:
        """An object turned out to be immutable or importable: it joins nothing."""

    def on_memory(self, thing: Any) -> None:
        """An array or memoryview was met."""

    # -- the choice -----------------------------------------------------------------------------------------------------------

    def reducer_override(self, thing: Any) -> Any:
        """The hook of the C pickler: how to save one object."""
        kind = type(thing)
        if kind is types.FunctionType:
            return self._function(thing)
        if issubclass(kind, type):
            return self._class(thing)
        if kind is Segment:
            flat = exposed(thing.low, thing.high - thing.low)
            self.texts.append(flat)
            return rebuild.segment, (self._payload(flat),)
        reason = why_tied(kind)
        if reason:
            return self.by_reference(thing, reason)
        if credentials.holds_credentials(thing):
            return self.by_reference(thing, credentials.HOLDS_CREDENTIALS)
        try:
            special = self._special(thing, kind)
            return special if special is not None else self._checked(thing, kind, self._asked(thing, kind))
        except Exception as error:
            if changed_under_walk(error):
                raise
            # The text of a foreign error may quote values; only pickle's own refusal is repeated.
            said = str(error) if isinstance(error, TypeError) and str(error).startswith("cannot pickle") else ""
            return self.by_reference(thing, said[:120] or f"saving it raised {type(error).__name__}")

    def _special(self, thing: Any, kind: type) -> Any:
        if issubclass(kind, types.ModuleType):
            return self._module(thing)
        if kind is types.CellType:
            return self._cell(thing)
        if kind is types.CodeType:
            self.has_code = True
            self.on_leaf(thing)
            return None
        if kind is memoryview:
            return self._memoryview(thing)
        if kind is array.array:
            self.on_memory(thing)
            return None
        if (
            issubclass(kind, BaseException)
            and kind.__reduce__ is BaseException.__reduce__
            and isinstance(kind.__init__, types.FunctionType)
        ):
            # Its own way calls the class with `args`, which fails for every error whose constructor asks for more.
            return rebuild.exception, (kind, thing.args), (vars(thing) or None)
        if kind is _CACHED and not is_importable(thing):
            parameters = thing.cache_parameters()
            return rebuild.cached, (thing.__wrapped__, parameters["maxsize"], parameters["typed"])
        if kind in _DICT_VIEWS:
            owner = gc.get_referents(thing)[0]
            return (rebuild.dict_view, (_DICT_VIEWS[kind], owner)) if isinstance(owner, dict) else None
        if kind is types.MappingProxyType:
            owner = gc.get_referents(thing)[0]
            return (types.MappingProxyType, (owner,)) if type(owner) is dict and "__weakref__" not in owner else None
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(thing, getattr(numpy, "ndarray", ())):
            return self._ndarray(thing, kind)
        pandas = sys.modules.get("pandas._libs.internals")
        if pandas is not None:
            return self._pandas(thing, pandas)
        return None

    def by_reference(self, thing: object, reason: str) -> Any:
        """Save a token in place of the object."""
        self.on_reference(thing, reason)
        return rebuild.recall, (references.token_of(thing, self.hold), name_of(type(thing)), reason)

    def _asked(self, thing: Any, kind: type) -> Any:
        """What the object's own reducer says."""
        own: Callable[[Any], Any] | None = self.dispatch_table.get(kind) or copyreg.dispatch_table.get(kind)
        reduce_ex: Any = kind.__reduce_ex__
        return own(thing) if own is not None else reduce_ex(thing, 5)

    def _checked(self, thing: Any, kind: type, value: Any) -> Any:
        """The same, proved to be something that pickle can use."""
        if isinstance(value, str):
            module = getattr(thing, "__module__", None) or pickle.whichmodule(thing, value)  # type: ignore[attr-defined]
            found: Any = sys.modules.get(module)
            for part in value.split("."):
                found = getattr(found, part, None)
            if found is not thing or module == "__main__":
                raise pickle.PicklingError("it is not what its module has under its name")
            self.on_leaf(thing)
            return value
        if not isinstance(value, tuple) or not 2 <= len(value) <= 6 or not callable(value[0]) or not isinstance(value[1], tuple):
            raise pickle.PicklingError("its reducer returns something that pickle cannot use")
        if getattr(value[0], "__name__", "") == "__newobj__" and thing.__class__ is not value[1][0]:
            raise pickle.PicklingError("it stands in for an object of another class")
        if 3 <= len(value) < 6 and value[2] is not None and hasattr(kind, "__getattr__") and not hasattr(kind, "__setstate__"):
            # Unpickling would ask the half-made object for `__setstate__`, and so run its `__getattr__`.
            value = (*value, *(None,) * (5 - len(value)), rebuild.set_state)
        if len(value) > 3 and (value[3] is not None or value[4:5] not in ((), (None,))):
            # Read them here, where a failure concerns this object alone.
            items = iter(list(value[3])) if value[3] is not None else None
            pairs = iter(list(value[4])) if len(value) > 4 and value[4] is not None else None
            value = (*value[:3], items, pairs, *value[5:])
        elif len(value) == 2 or value[2] is None:
            known = _constant(thing, kind, value)
            if known is not None:
                self.on_leaf(thing)
                return rebuild.attribute, known
        return value

    # -- code -----------------------------------------------------------------------------------------------------------------

    def _function(self, f: types.FunctionType) -> Any:
        if is_importable(f):
            self.on_leaf(f)
            return NotImplemented
        self.has_code = True
        where = self._globals_of(f)
        if where is None:
            try:
                return super().reducer_override(f)
            except Exception as error:
                return self.by_reference(f, f"saving the function raised {type(error).__name__}")
        try:
            annotations = f.__annotations__ or None
        except Exception:  # lazily evaluated and naming something that is gone
            annotations = None
        state = (
            f.__defaults__,
            f.__kwdefaults__,
            annotations,
            f.__doc__,
            f.__module__,
            f.__qualname__,
            f.__dict__ or None,
            getattr(f, "__type_params__", ()),
        )
        return rebuild.function, (f.__code__, where, f.__name__, f.__closure__), state, None, None, rebuild.set_function

    def _globals_of(self, f: types.FunctionType) -> tuple[str, str] | None:
        """The live globals that a restored function must see: the namespace's own, or those of its module."""
        found = f.__globals__
        if found is self.namespace:
            return "namespace", ""
        name = found.get("__name__")
        module = sys.modules.get(name) if isinstance(name, str) else None
        if module is not None and getattr(module, "__dict__", None) is found:
            return "module", str(name)
        return None

    def _cell(self, c: types.CellType) -> Any:
        try:
            content = (c.cell_contents,)
        except ValueError:
            return rebuild.cell, ()
        return rebuild.cell, (), content, None, None, rebuild.set_cell

    def _class(self, c: type) -> Any:
        if is_importable(c):
            self.on_leaf(c)
            return NotImplemented
        if not c.__flags__ & _HEAP_TYPE and c.__module__ not in ("builtins", "types"):
            return self.by_reference(c, "a class of compiled code that no module names")
        try:
            value = super().reducer_override(c)
        except Exception as error:
            return self.by_reference(c, f"saving the class raised {type(error).__name__}")
        if value is NotImplemented or getattr(value[0], "__name__", "") not in _SKELETONS:
            self.on_leaf(c)
            return value
        self.has_code = True
        # Without cloudpickle's tracking id: with it, loading would write into the live class before anything was decided.
        if issubclass(c, enum.Enum):
            members = {name: dict(vars(member)) for name, member in c._member_map_.items()}
            return value[0], (*value[1][:-2], None, value[1][-1]), (value[2], members), None, None, rebuild.set_enum
        kind, name, bases, keywords, *_ = value[1]
        return rebuild.new_class, (kind, name, bases, keywords), value[2], None, None, rebuild.set_class

    def _module(self, m: types.ModuleType) -> Any:
        name = getattr(m, "__name__", None)
        if isinstance(name, str) and sys.modules.get(name) is m:
            self.on_leaf(m)
            return rebuild.module, (name,)
        return self.by_reference(m, "a module that cannot be imported by its name")

    # -- memory ---------------------------------------------------------------------------------------------------------------

    def _payload(self, flat: memoryview) -> Any:
        """Raw bytes: small ones in the stream, others beside it under an index."""
        if flat.nbytes < OUT_OF_BAND:
            return bytes(flat)
        self.arrays.append(flat)
        return len(self.arrays) - 1

    def _ndarray(self, a: Any, kind: type) -> Any:
        numpy = sys.modules["numpy"]
        if kind is not numpy.ndarray:
            return self._ndarray_subclass(a, kind, numpy.ndarray)
        if not is_plain(a):
            owner: Any = root_of(a)
            if a.dtype.kind == "O" and owner is not a and _is_one(owner, numpy.ndarray) and owner.dtype == a.dtype and _contiguous(owner):
                return rebuild.object_view, (owner, start_of(a) - start_of(owner), a.shape, a.strides, bool(a.flags.writeable))
            return None
        self.on_memory(a)
        if self.layout is None:
            return rebuild.ndarray, (b"", a.dtype, (0,), "C", True)
        group = self.layout.group_of(a)
        if group is not None and group.target is not a:
            return rebuild.view, (group.target, start_of(a) - group.base, a.dtype, a.shape, a.strides, bool(a.flags.writeable))
        order = "F" if a.flags.f_contiguous and not a.flags.c_contiguous else "C"
        dense = a if a.flags.c_contiguous or a.flags.f_contiguous else a.copy("C")
        flat = memoryview(dense.reshape(-1, order=order).view("u1")) if a.nbytes else memoryview(b"")
        if a.dtype.kind in "SUV" or a.itemsize == 1:
            self.texts.append(flat)
        return rebuild.ndarray, (self._payload(flat), a.dtype, a.shape, order, bool(a.flags.writeable))

    def _ndarray_subclass(self, a: Any, kind: type, ndarray: Any) -> Any:
        plain = all(getattr(kind, name) is getattr(ndarray, name) for name in ("__reduce__", "__reduce_ex__", "__setstate__"))
        if not plain or not is_plain(a):
            return None
        attributes = dict(vars(a)) if getattr(a, "__dict__", None) else None
        return rebuild.subclass, (a.view(ndarray), kind), attributes, None, None, rebuild.set_attributes

    def _memoryview(self, m: Any) -> Any:
        try:
            step = m.strides[0] if m.ndim == 1 and m.strides else m.itemsize
            known = m.format in "bBhHiIlLqQfdc?" and len(m.format) == 1
            fits = (m.contiguous and m.c_contiguous) or (m.ndim == 1 and m.nbytes and step % m.itemsize == 0 and step)
        except ValueError:
            return self.by_reference(m, "a released memoryview")
        if not known or not fits or m.ndim == 0:
            return self.by_reference(m, "a memoryview of a form that cannot be saved")
        self.on_memory(m)
        if self.layout is None:
            return rebuild.segment, (b"",)
        step = step or m.itemsize
        group = self.layout.group_of(m)
        if group is not None:
            return rebuild.memory_view, (group.target, start_of(m) - group.base, m.format, m.shape, step, m.readonly)
        content = m.tobytes()
        return rebuild.memory_view, (content if m.readonly else bytearray(content), 0, m.format, m.shape, m.itemsize, m.readonly)

    # -- pandas ---------------------------------------------------------------------------------------------------------------

    def _pandas(self, thing: Any, internals: Any) -> Any:
        """Blocks keep their count of sharers (copy-on-write hangs on it); an index never shares memory, since it caches what it saw."""
        counter: Any = getattr(internals, "BlockValuesRefs", None)
        if counter is None:
            return None
        if isinstance(thing, counter):
            return rebuild.block_refs, ()
        if isinstance(thing, getattr(internals, "Block", ())) and _is_one(refs := getattr(thing, "refs", None), counter):
            own: Any = thing.__reduce__()
            make, arguments = own[:2]
            return rebuild.block, (make, arguments, refs)
        if type(thing).__name__ == "SingleBlockManager" and module_of(type(thing)).startswith("pandas."):
            return type(thing), (thing.blocks[0], thing.axes[0])  # its own way drops the block
        pandas: Any = sys.modules.get("pandas")
        index: Any = getattr(pandas, "Index", None)
        if index is not None and isinstance(thing, index):
            make, (kind, state), *rest = thing.__reduce__()
            return make, (kind, {name: self._private(value) for name, value in state.items()}), *rest
        if module_of(type(thing)).partition(".")[0] == "pandas":
            value = self._asked(thing, type(thing))
            if isinstance(value, tuple) and len(value) > 2 and isinstance(value[2], dict):
                return (*value[:2], _own_state(value[2]), *value[3:])
        return None

    def _private(self, value: Any) -> Any:
        """A copy of an index's data that shares memory with nothing."""
        if hasattr(value, "dtype") and hasattr(value, "copy") and hasattr(value, "shape"):
            return value.copy()
        if isinstance(value, list) and value and all(hasattr(part, "dtype") and hasattr(part, "nbytes") for part in value):
            return [part.copy() for part in value if hasattr(part, "copy")]
        return value


_DICT_VIEWS: dict[type, str] = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}


def _own_state(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a pandas object without what is not its own: cached results, and a list of its class that would join all frames."""
    return {name: list(value) if name == "_metadata" else value for name, value in state.items() if name != "_cache"}


def _is_one(thing: Any, kind: Any) -> bool:
    return isinstance(thing, kind)


def _contiguous(a: Any) -> bool:
    return bool(a.flags.c_contiguous or a.flags.f_contiguous)


def _constant(thing: Any, kind: type, value: tuple[Any, ...]) -> tuple[str, str] | None:
    """Module and name of a sentinel: a stateless object known by its identity, such as ``dataclasses.MISSING``."""
    if value[1] != (kind,) and value[1] != (kind, object, None):
        return None
    if not is_importable(kind) or kind.__module__ == "builtins":
        return None
    for name, other in list(vars(sys.modules[kind.__module__]).items()):
        if other is thing:
            return kind.__module__, name
    return None
