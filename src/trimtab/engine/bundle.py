"""Teach numba to take a bundle of tables as one pointer.

A NamedTuple of arrays crosses every call by value: sixteen arrays are 120 words, reference-counted.
Measured on this engine, that cost five times the running time and most of the compile time. A
bundle is instead one pointer to a block that holds each table's address and shape; reading
``state.requests`` in compiled code builds a borrowed view from it (no copy, no reference count).
Uncompiled, a bundle is an ordinary object with NumPy arrays as attributes: the code is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils
from numba.extending import (
    NativeValue,
    infer_getattr,
    lower_getattr_generic,
    models,
    register_model,
    typeof_impl,
    unbox,
)
from numba.core.typing.templates import AttributeTemplate

WORDS = 3  # per table: address, shape[0], shape[1]

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
    """The numba type of a registered class; at module level, so that cached signatures find it."""

    def __init__(self, name: str) -> None:
        super().__init__(name=f"Bundle({name})")


register_model(BundleType)(models.OpaqueModel)


def register(python_class: type, layout: Layout) -> None:
    """Make ``python_class`` a numba type with ``layout`` = {field: (dtype, dimensions)} in order.

    Instances need an attribute ``block`` made by ``address_block`` from the tables in that order,
    and must keep the tables alive; tables are C-contiguous and never replaced.
    """

    bundle_type = BundleType(python_class.__name__)
    names = list(layout)
    array_types = {
        name: types.Array(from_dtype(dtype), dimensions, "C") for name, (dtype, dimensions) in layout.items()
    }

    @typeof_impl.register(python_class)
    def type_of(value: Any, context: Any) -> types.Type:
        return bundle_type

    @infer_getattr
    class BundleAttribute(AttributeTemplate):  # type: ignore[misc, unused-ignore]
        key = BundleType

        def generic_resolve(self, value: Any, attribute: str) -> Any:
            return array_types.get(attribute)

    @lower_getattr_generic(BundleType)
    def lower_attribute(context: Any, builder: Any, typ: Any, value: Any, attribute: str) -> Any:
        array_type = array_types[attribute]
        words = builder.bitcast(value, ir.IntType(64).as_pointer())

        def word(index: int) -> Any:
            cell = builder.gep(words, [ir.Constant(ir.IntType(64), WORDS * names.index(attribute) + index)])
            loaded = builder.load(cell)
            loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
            return loaded

        array = context.make_array(array_type)(context, builder)
        item_size = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
        item = ir.Constant(ir.IntType(64), item_size)
        shape = [word(1 + axis) for axis in range(array_type.ndim)]
        strides = [item] if array_type.ndim == 1 else [builder.mul(shape[1], item), item]
        context.populate_array(
            array,
            data=builder.inttoptr(word(0), array.data.type),
            shape=cgutils.pack_array(builder, shape),
            strides=cgutils.pack_array(builder, strides),
            itemsize=item,
            meminfo=None,
        )
        return array._getvalue()

    @unbox(BundleType)
    def unbox_bundle(typ: Any, value: Any, context: Any) -> Any:
        block = context.pyapi.object_getattr_string(value, "address")
        native = context.pyapi.long_as_voidptr(block)
        context.pyapi.decref(block)
        return NativeValue(native, is_error=cgutils.is_not_null(context.builder, context.pyapi.err_occurred()))
