"""Compile functions with Numba, and write their innermost loops in LLVM IR.

LLVM does not always find the best instructions for a loop by itself; the helpers below build loops that it compiles
well on any processor. Addresses are integers, in bytes. Numba takes a second to import, so import this module lazily.
"""

import contextlib
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, codegen, config
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])

PREFETCH = "llvm.prefetch.p0i8"
I16, I32, I64, F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def compiled(function: Function) -> Function:
    """Compile a function to machine code that runs without the GIL and is cached on disk where possible.

    The compiler may fuse a multiplication and an addition without rounding in between.
    """
    return _compiled(function, {"contract"})


def summing(function: Function) -> Function:
    """Compile as `compiled`, and let the compiler reorder sums, so that it can use vectors."""
    return _compiled(function, {"contract", "reassoc"})


def _compiled(function: Function, fastmath: set[str]) -> Function:
    options: dict[str, Any] = {"nogil": True, "fastmath": fastmath}
    try:
        output: Any = njit(**options, cache=True)(function)
    except RuntimeError:  # no folder is writable
        return cast(Function, njit(**options)(function))
    # Numba's cache depends on the file of the function alone; functions that it calls are compiled into it too.
    output._cache._cache_file._source_stamp = (output._cache._cache_file._source_stamp, *_sources())
    save = output._cache.save_overload

    def save_if_possible(*arguments: Any) -> None:
        with contextlib.suppress(OSError):  # a full disk: the compiled function is used all the same
            save(*arguments)

    output._cache.save_overload = save_if_possible
    return cast(Function, output)


@cache
def _sources() -> tuple[tuple[str, str], ...]:
    """Names and hashes of the files that machine code is compiled from."""
    here = Path(__file__).parent
    files = (*sorted(here.glob("*_kernels.py")), *here.glob("compiled.py"))
    return tuple((file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files)


def has_feature(feature: str) -> bool:
    """Whether Numba compiles for a processor with this feature: the host, or the one in NUMBA_CPU_FEATURES."""
    host_features: Any = codegen.get_host_cpu_features
    given: str | None = vars(config)["CPU_FEATURES"]
    return f"+{feature}" in (host_features() if given is None else given).split(",")


def written(function: Callable[..., Any]) -> Any:
    """Declare a function in LLVM IR for compiled functions to call.

    The function is given types and returns a signature and `generate(context, builder, signature, arguments)`.
    """
    return intrinsic(function)


def pointer(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    """Return a pointer to a value of this LLVM type, `offset` bytes after the address."""
    return builder.inttoptr(builder.add(address, I64(offset)), kind.as_pointer())


def load(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    """Read a number or vector of this LLVM type."""
    return builder.load(pointer(builder, address, offset, kind), align=2)


def store(builder: Any, vector: Any, address: Any, offset: int) -> None:
    """Write a vector."""
    builder.store(vector, pointer(builder, address, offset, vector.type), align=2)


def broadcast(builder: Any, number: Any, count: int) -> Any:
    """Return a vector with `count` copies of a number."""
    undefined = ir.Constant(ir.VectorType(number.type, count), ir.Undefined)
    first = builder.insert_element(undefined, number, I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, count), [0] * count))


def sums(builder: Any, count: Any, kinds: list[Any], add: Any) -> list[Any]:
    """Accumulate sums in a loop of `count` rounds (at least 1); the sums have these LLVM types and start at zero.

    `add(index, totals)` returns the totals with the terms of round `index` (0 to count - 1) added.
    """
    before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(I64)
    totals = [builder.phi(kind) for kind in kinds]
    added = add(index, totals)
    following = builder.add(index, I64(1))
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
    for phi, start, next_one in zip(
        (index, *totals), (I64(0), *(ir.Constant(kind, None) for kind in kinds)), (following, *added), strict=True
    ):
        phi.add_incoming(start, before)
        phi.add_incoming(next_one, loop)
    builder.position_at_end(after)
    return list(added)


@written
def fetch(typing_context: Any, address: Any, length: Any) -> Any:
    """Prefetch `length` bytes from an address into the cache."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        address, length = given
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), I32, I32, I32])
        module: Any = builder.module
        prefetch = module.globals.get(PREFETCH) or ir.Function(module, kind, PREFETCH)
        with cgutils.for_range_slice(builder, I64(0), length, I64(64), intp=I64) as (at, _):
            where = builder.inttoptr(builder.add(address, at), ir.IntType(8).as_pointer())
            builder.call(prefetch, [where, I32(0), I32(3), I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate
