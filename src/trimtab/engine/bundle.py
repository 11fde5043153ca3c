"""Teach numba to take a bundle of tables as one pointer and to reach a cell in one instruction.

A NamedTuple of NumPy arrays crosses every call by value (sixteen arrays are 120 words, reference
counted), and each ``table["field"][row]`` builds an array view with wrap-around for negative rows.
Measured on this engine, that cost ten times the running time and most of the compile time. Here a
bundle is one pointer to a block with each table's address and shape; ``state.table["field"][row]``
becomes a load at a fixed stride. Uncompiled, a bundle is an ordinary object with NumPy arrays as
attributes: the code is the same. Rows must not be negative, and nothing checks bounds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer, infer_global, signature
from numba.extending import (
    NativeValue,
    infer_getattr,
    lower_builtin,
    lower_getattr_generic,
    models,
    register_model,
    typeof_impl,
    unbox,
)

WORDS = 3  # per table: address, shape[0], shape[1]
WORD = ir.IntType(64)

Layout = Mapping[str, tuple[np.dtype[Any], int]]


def address_block(arrays: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, np.dtype[np.uintp]]:
    """The block that compiled code reads: ``WORDS`` machine words per table."""
    block = np.zeros(WORDS * len(arrays), np.uintp)
    for index, array in enumerate(arrays):
        assert array.flags.c_contiguous and array.ndim <= WORDS - 1
        block[WORDS * index] = array.ctypes.data
        block[WORDS * index + 1 : WORDS * index + 1 + array.ndim] = array.shape
    return block


class BundleType(types.Type):
    """A registered class. Types live at module level, so that cached signatures find them."""

    def __init__(self, name: str) -> None:
        super().__init__(name=f"Bundle({name})")


class TableType(types.Type):
    """A C-contiguous table of records (or of scalars: then ``fields`` is empty)."""

    def __init__(self, record: Any, ndim: int) -> None:
        self.record = record
        self.ndim = ndim
        super().__init__(name=f"Table({record}, {ndim})")


class ColumnType(types.Type):
    """One field of a table: cells of ``scalar`` at ``offset`` in rows of ``stride`` bytes."""

    def __init__(self, scalar: Any, ndim: int, offset: int, stride: int) -> None:
        self.scalar, self.ndim, self.offset, self.stride = scalar, ndim, offset, stride
        super().__init__(name=f"Column({scalar}, {ndim}, {offset}, {stride})")


@register_model(BundleType)
class BundleModel(models.OpaqueModel):  # type: ignore[misc]
    """A pointer to the address block."""


@register_model(TableType)
@register_model(ColumnType)
class TableModel(models.StructModel):  # type: ignore[misc]
    """Where the rows start, and the shape."""

    def __init__(self, manager: Any, table_type: Any) -> None:
        members = [("data", types.voidptr), ("rows", types.intp), ("width", types.intp)]
        super().__init__(manager, table_type, members)


def stride_of(record: Any) -> int:
    """Bytes of one cell of a table."""
    return int(record.size) if isinstance(record, types.Record) else int(np.dtype(str(record)).itemsize)


@infer
class TableField(AbstractTemplate):  # type: ignore[misc]
    key = "static_getitem"

    def generic(self, args: Any, kws: Any) -> Any:
        table, field = args
        if not isinstance(table, TableType) or not isinstance(field, str):
            return None
        scalar, offset = table.record.typeof(field), table.record.offset(field)
        return signature(ColumnType(scalar, table.ndim, offset, stride_of(table.record)), *args)


@lower_builtin("static_getitem", TableType, types.StringLiteral)
def lower_field(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    table = cgutils.create_struct_proxy(sig.args[0])(context, builder, value=args[0])
    column = cgutils.create_struct_proxy(sig.return_type)(context, builder)
    column.data, column.rows, column.width = table.data, table.rows, table.width
    return column._getvalue()


def _cell_type(table: Any, index: Any) -> Any:
    """(scalar, index type) of ``table[index]``, or None where that is no cell."""
    if isinstance(table, ColumnType):
        scalar = table.scalar
    elif isinstance(table, TableType) and not isinstance(table.record, types.Record):
        scalar = table.record
    else:
        return None
    if table.ndim == 1 and isinstance(index, types.Integer):
        return scalar, types.intp
    if table.ndim == 2 and isinstance(index, types.BaseTuple) and len(index) == 2:
        return scalar, types.UniTuple(types.intp, 2)
    return None


@infer_global(operator.getitem)
class CellGet(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        cell = _cell_type(*args)
        return cell and signature(cell[0], args[0], cell[1])


@infer_global(operator.setitem)
class CellSet(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        cell = _cell_type(*args[:2])
        return cell and signature(types.none, args[0], cell[1], cell[0])


def _cell(context: Any, builder: Any, table_type: Any, table: Any, index: Any) -> tuple[Any, Any]:
    """Pointer to a cell, and its type."""
    if isinstance(table_type, ColumnType):
        scalar, offset, stride = table_type.scalar, table_type.offset, table_type.stride
    else:
        scalar, offset, stride = table_type.record, 0, stride_of(table_type.record)
    proxy = cgutils.create_struct_proxy(table_type)(context, builder, value=table)
    if table_type.ndim == 2:
        row, slot = cgutils.unpack_tuple(builder, index, 2)
        index = builder.add(builder.mul(row, proxy.width), slot)
    place = builder.add(builder.mul(index, ir.Constant(WORD, stride)), ir.Constant(WORD, offset))
    address = builder.gep(builder.bitcast(proxy.data, ir.IntType(8).as_pointer()), [place])
    return builder.bitcast(address, context.get_data_type(scalar).as_pointer()), scalar


@lower_builtin(operator.getitem, ColumnType, types.Integer)
@lower_builtin(operator.getitem, ColumnType, types.BaseTuple)
@lower_builtin(operator.getitem, TableType, types.Integer)
@lower_builtin(operator.getitem, TableType, types.BaseTuple)
def lower_get(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    pointer, scalar = _cell(context, builder, sig.args[0], *args)
    return context.unpack_value(builder, scalar, pointer)


@lower_builtin(operator.setitem, ColumnType, types.Integer, types.Any)
@lower_builtin(operator.setitem, ColumnType, types.BaseTuple, types.Any)
@lower_builtin(operator.setitem, TableType, types.Integer, types.Any)
@lower_builtin(operator.setitem, TableType, types.BaseTuple, types.Any)
def lower_set(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    pointer, scalar = _cell(context, builder, sig.args[0], args[0], args[1])
    value = context.cast(builder, args[2], sig.args[2], scalar)
    context.pack_value(builder, scalar, value, pointer)
    return context.get_dummy_value()


@infer_global(len)
class TableLen(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:
        return signature(types.intp, args[0]) if isinstance(args[0], (TableType, ColumnType)) else None


@lower_builtin(len, TableType)
@lower_builtin(len, ColumnType)
def lower_len(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return cgutils.create_struct_proxy(sig.args[0])(context, builder, value=args[0]).rows


@infer_getattr
class TableAttribute(AttributeTemplate):  # type: ignore[misc]
    key = TableType

    def resolve_shape(self, table: Any) -> Any:
        return types.UniTuple(types.intp, table.ndim)


@lower_getattr_generic(TableType)
def lower_shape(context: Any, builder: Any, typ: Any, value: Any, attribute: str) -> Any:
    proxy = cgutils.create_struct_proxy(typ)(context, builder, value=value)
    return cgutils.pack_array(builder, [proxy.rows, proxy.width][: typ.ndim])


def register(python_class: type, layout: Layout) -> Callable[[Any, int], Any]:
    """Make ``python_class`` a numba type with ``layout`` = {field: (dtype, dimensions)} in order.

    Instances need an attribute ``address`` (int) of a block made by ``address_block`` from the tables
    in that order, and must keep block and tables alive; tables are never replaced.

    Returns ``at(many, index)``, one instance of many: of a list of them; compiled, of an array (uintp) of
    their addresses, which nothing checks.
    """
    bundle_type = BundleType(python_class.__name__)
    names = list(layout)
    tables = {name: TableType(from_dtype(dtype), ndim) for name, (dtype, ndim) in layout.items()}

    @typeof_impl.register(python_class)
    def type_of(value: Any, context: Any) -> types.Type:
        return bundle_type

    @infer_getattr
    class BundleAttribute(AttributeTemplate):  # type: ignore[misc]
        key = BundleType

        def generic_resolve(self, value: Any, attribute: str) -> Any:
            return tables.get(attribute)

    @lower_getattr_generic(BundleType)
    def lower_attribute(context: Any, builder: Any, typ: Any, value: Any, attribute: str) -> Any:
        words = builder.bitcast(value, WORD.as_pointer())

        def word(index: int) -> Any:
            cell = builder.gep(words, [ir.Constant(WORD, WORDS * names.index(attribute) + index)])
            loaded = builder.load(cell)
            loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
            return loaded

        table = cgutils.create_struct_proxy(tables[attribute])(context, builder)
        table.data = builder.inttoptr(word(0), table.data.type)
        table.rows, table.width = word(1), word(2)
        return table._getvalue()

    @unbox(BundleType)
    def unbox_bundle(typ: Any, value: Any, context: Any) -> Any:
        address = context.pyapi.object_getattr_string(value, "address")
        native = context.pyapi.long_as_voidptr(address)
        context.pyapi.decref(address)
        return NativeValue(
            native, is_error=cgutils.is_not_null(context.builder, context.pyapi.err_occurred())
        )

    def at(many: Any, index: int) -> Any:
        return many[index]

    class BundleAt(AbstractTemplate):  # type: ignore[misc]
        key = at

        def generic(self, args: Any, kws: Any) -> Any:
            return signature(bundle_type, args[0], types.intp)

    infer_global(at, types.Function(BundleAt))

    @lower_builtin(at, types.Array, types.Integer)
    def lower_at(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array = context.make_array(sig.args[0])(context, builder, value=args[0])
        address = builder.load(builder.gep(array.data, [args[1]]))
        return builder.inttoptr(address, context.get_value_type(bundle_type))

    return at
