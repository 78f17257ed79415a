"""How bytes become objects again. The functions below are named in stored bytes: keep their names and the meaning of their arguments."""

from __future__ import annotations

import functools
import importlib
import io
import pickle
import sys
import threading
import types
from typing import Any

from wflo_nb.snapshot import references


class Surroundings(threading.local):
    """What is being loaded in this thread: the live namespace and the raw bytes of the arrays."""

    namespace: Any = None
    arrays: list[Any] | None = None


_now = Surroundings()


class Loader(pickle.Unpickler):
    """Loads one component."""

    def persistent_load(self, token: Any) -> Any:
        """What was kept by name or by reference inside a plain container."""
        kind = token[0]
        if kind == "namespace":
            return _now.namespace
        if kind == "module":
            return vars(importlib.import_module(token[1]))
        if kind == "reference":
            return references.recall(*token[1:])
        raise pickle.UnpicklingError(f"unknown reference {kind!r}")


def load(stream: Any, arrays: list[Any], buffers: list[Any], namespace: Any) -> list[Any]:
    """The values of one component, in the order of its names. `arrays` is consumed."""
    before = _now.namespace, _now.arrays
    _now.namespace, _now.arrays = namespace, arrays
    try:
        values: list[Any] = Loader(io.BytesIO(stream), buffers=buffers).load()
        return values
    finally:
        _now.namespace, _now.arrays = before


def recall(token: str, what: str, reason: str) -> object:
    """An object kept by reference."""
    return references.recall(token, what, reason)


def module(name: str) -> object:
    """A module, by import."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        return references.Lost(f"module {name}", f"importing it raised {type(error).__name__}")


def attribute(module_name: str, name: str) -> object:
    """A constant of a module that is known by its identity."""
    return getattr(importlib.import_module(module_name), name)


def function(code: types.CodeType, where: tuple[str, str], name: str, closure: tuple[types.CellType, ...] | None) -> types.FunctionType:
    """A function over live globals: the namespace's, or those of the module that it was made in."""
    if where[0] == "namespace":
        found = _now.namespace if isinstance(_now.namespace, dict) else vars(sys.modules["__main__"])
    else:
        found = vars(importlib.import_module(where[1]))
    return types.FunctionType(code, found, name, None, closure)


def set_function(f: Any, state: tuple[Any, ...]) -> None:
    """All of a function that its constructor does not take."""
    f.__defaults__, f.__kwdefaults__, annotations, f.__doc__, f.__module__, f.__qualname__, attributes, type_params = state
    if annotations is not None:
        f.__annotations__ = annotations
    if attributes:
        f.__dict__.update(attributes)
    if type_params:
        f.__type_params__ = type_params


def is_importable(thing: Any) -> bool:
    """Is it a function or class that any process can import by its name?"""
    module, path = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(path, str) or module == "__main__" or "<locals>" in path:
        return False
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found is thing


class _Quiet:
    """Answers `__init_subclass__` in place of a class of the notebook."""

    def __init_subclass__(cls, **_: Any) -> None:
        pass


def new_class(kind: type, name: str, bases: tuple[type, ...], keywords: dict[str, Any]) -> type:
    """An empty class of the notebook, to be filled by `set_class`.

    None of the notebook's own hooks run (a metaclass's `__new__`, `__init_subclass__`): they would run again what ran when the class
    was defined, over the live variables, before the restore is decided. Hooks of libraries do run.
    """
    maker = next(c for c in kind.__mro__ if is_importable(c))
    space = {sys.intern(key): value for key, value in keywords.items()}
    resolved = types.resolve_bases(bases)  # `Generic[T]` among them is not a class
    hook = next((c for base in resolved for c in base.__mro__ if "__init_subclass__" in vars(c)), object)
    quiet = not is_importable(hook)
    over = (_Quiet, *bases) if quiet else bases
    made: Any
    if maker is kind:
        made = types.new_class(name, over, {"metaclass": kind}, lambda ns: ns.update(space))
    else:
        new: Any = maker.__new__
        if resolved is not bases:
            space["__orig_bases__"] = bases
        made = new(kind, name, types.resolve_bases(over), space)
    if quiet:
        made.__bases__ = resolved
    created: type = made
    return created


def set_class(c: type, state: Any) -> None:
    """The content of a class."""
    importlib.import_module("cloudpickle.cloudpickle")._class_setstate(c, state)


def set_enum(c: Any, state: tuple[Any, dict[str, dict[str, Any]]]) -> None:
    """The content of an enumeration, and what its members carry."""
    set_class(c, state[0])
    for name, attributes in state[1].items():
        c._member_map_[name].__dict__.update(attributes)


def cached(f: Any, maxsize: int | None, typed: bool) -> Any:
    """A function with an empty cache."""
    return functools.lru_cache(maxsize, typed)(f)


def cell() -> types.CellType:
    """An empty cell of a closure, shared by the functions that share the variable."""
    return types.CellType()


def set_cell(c: types.CellType, state: tuple[Any]) -> None:
    """The content of a cell."""
    c.cell_contents = state[0]


def _raw(payload: Any) -> Any:
    if isinstance(payload, int):
        arrays = _now.arrays
        assert arrays is not None
        data, arrays[payload] = arrays[payload], None
        return data
    return payload


def ndarray(payload: Any, dtype: Any, shape: tuple[int, ...], order: str, writeable: bool) -> Any:
    """An array that owns its memory. `payload` is its bytes, or where they stand among the component's arrays."""
    np = importlib.import_module("numpy")
    made = np.empty(shape, dtype, order)
    if made.nbytes:
        made.reshape(-1, order="A" if order == "F" else "C").view("u1")[...] = np.frombuffer(_raw(payload), "u1")
    if not writeable:
        made.flags.writeable = False
    return made


def segment(payload: Any) -> bytearray:
    """Memory that several views share and no variable owns."""
    data = _raw(payload)
    return data if isinstance(data, bytearray) else bytearray(data)


def view(owner: Any, offset: int, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...], writeable: bool) -> Any:
    """An array over memory of another object."""
    np = importlib.import_module("numpy")
    base = owner
    if isinstance(owner, np.ndarray):
        base = owner.reshape(-1, order="C" if owner.flags.c_contiguous else "F").view("u1")
    made = np.ndarray(shape, dtype, base, offset, strides)
    if not writeable:
        made.flags.writeable = False
    return made


def object_view(owner: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], writeable: bool) -> Any:
    """An array of objects over another one."""
    np = importlib.import_module("numpy")
    flat = owner.reshape(-1, order="C" if owner.flags.c_contiguous else "F")
    made = np.lib.stride_tricks.as_strided(flat[offset // owner.itemsize :], shape, strides)
    if not writeable:
        made.flags.writeable = False
    return made


def subclass(base: Any, kind: type) -> Any:
    """An array seen as a subclass of ndarray."""
    return base.view(kind)


def set_attributes(thing: Any, state: dict[str, Any]) -> None:
    """Plain instance attributes."""
    thing.__dict__.update(state)


def memory_view(owner: Any, offset: int, format_: str, shape: tuple[int, ...], step: int, readonly: bool) -> memoryview:
    """A memoryview over memory of another object: contiguous, or one-dimensional with a step."""
    np = sys.modules.get("numpy")
    if np is not None and isinstance(owner, np.ndarray):
        owner = owner.reshape(-1, order="C" if owner.flags.c_contiguous else "F").view("u1")
    whole = memoryview(owner).cast("B")
    itemsize = memoryview(bytes(16)).cast(format_).itemsize  # type: ignore[call-overload]
    if len(shape) == 1 and step != itemsize:
        # A cast view steps in whole items, so the reducer sends only steps that are multiples of one.
        length = shape[0]
        first = min(offset, offset + (length - 1) * step)
        items = whole[first : first + (length - 1) * abs(step) + itemsize].cast(format_)  # type: ignore[call-overload]
        made = items[:: abs(step) // itemsize]
        made = made if step > 0 else made[::-1]
    else:
        size = itemsize
        for length in shape:
            size *= length
        flat = whole[offset : offset + size]
        made = flat.cast(format_, list(shape)) if len(shape) > 1 else flat.cast(format_)  # type: ignore[call-overload]
    final: memoryview = made.toreadonly() if readonly else made
    return final


def set_state(thing: Any, state: Any) -> None:
    """The state of an object that has no say in it: attributes, or attributes and slots."""
    attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    if attributes:
        object.__getattribute__(thing, "__dict__").update(attributes)
    for name, value in (slots or {}).items():
        object.__setattr__(thing, name, value)


def exception(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """An error without calling its constructor."""
    made = kind.__new__(kind, *args)
    made.args = args
    return made


def dict_view(kind: str, owner: dict[Any, Any]) -> Any:
    """``d.keys()``, ``d.values()``, ``d.items()`` over the restored dict."""
    return getattr(owner, kind)()


def block_refs() -> Any:
    """What pandas counts the sharers of a block with; each restored block joins it."""
    return importlib.import_module("pandas._libs.internals").BlockValuesRefs()


def block(make: Any, arguments: tuple[Any, ...], refs: Any) -> Any:
    """A block of a frame that knows who shares its memory, so that copy-on-write goes on to work."""
    made = make(*arguments)
    made.refs = refs
    refs.add_reference(made)
    return made
