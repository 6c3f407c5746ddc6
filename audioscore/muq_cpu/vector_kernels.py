"""What innermost loops are written with in LLVM's terms, where it would not find the best instructions by itself.

These are of no processor in particular: LLVM makes of them what the one at hand has. Addresses are numbers of bytes.
What is chosen by HAS_VNNI must be chosen by nothing else: Numba keeps machine code apart by what a processor has.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, codegen, config
from numba.extending import intrinsic

PREFETCH = "llvm.prefetch.p0i8"
I16, I32, I64, F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def _features() -> list[str]:
    """What Numba compiles for: the processor's features, each with a sign, or those in NUMBA_CPU_FEATURES."""
    of_processor: Any = codegen.get_host_cpu_features
    given: str | None = vars(config)["CPU_FEATURES"]
    return (of_processor() if given is None else given).split(",")


HAS_VNNI = "+avx512vnni" in _features()  # AVX-512's products of integers


def written(function: Callable[..., Any]) -> Any:
    """What compiled functions call and what this function writes at that place: it is given types and returns, beside
    a signature, `generate(context, builder, signature, arguments)`.
    """
    return intrinsic(function)


def pointer(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    """Where a number or a vector of this kind is, `offset` bytes behind the address."""
    return builder.inttoptr(builder.add(address, I64(offset)), kind.as_pointer())


def load(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    """The number or vector there."""
    return builder.load(pointer(builder, address, offset, kind), align=2)


def store(builder: Any, vector: Any, address: Any, offset: int) -> None:
    """Write the vector there."""
    builder.store(vector, pointer(builder, address, offset, vector.type), align=2)


def everywhere(builder: Any, number: Any, count: int) -> Any:
    """A vector of `count` times the number."""
    nothing = ir.Constant(ir.VectorType(number.type, count), ir.Undefined)
    first = builder.insert_element(nothing, number, I32(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(I32, count), [0] * count))


def sums(builder: Any, count: Any, kinds: list[Any], add: Any) -> list[Any]:
    """Sums over a loop: `add(place, before)` gives all of them with what is at `place`, of 0 to `count` - 1, added.

    `count` is 1 at least; sums are of these kinds, and begin at zero.
    """
    before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    place = builder.phi(I64)
    totals = [builder.phi(kind) for kind in kinds]
    added = add(place, totals)
    following = builder.add(place, I64(1))
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
    for phi, start, next_one in zip(
        (place, *totals), (I64(0), *(ir.Constant(kind, None) for kind in kinds)), (following, *added), strict=True
    ):
        phi.add_incoming(start, before)
        phi.add_incoming(next_one, loop)
    builder.position_at_end(after)
    return list(added)


@written
def fetch(typing_context: Any, address: Any, length: Any) -> Any:
    """Fetch `length` bytes from an address on into the cache, while something else is computed."""

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


ROWS, SUMS, VECTORS = 12, 16, 2  # 24 vectors of sums, of the 32 that a processor holds
_INTS = ir.VectorType(I32, SUMS)
_BYTES = 4 * SUMS
_FACTORS = 8 - VECTORS  # registers for the rows' factors, behind those of the columns'; then come the sums
_ADDRESSES = ROWS // 3  # of rows: an instruction adds no, one or two strides to an address by itself


def sums_of_pairs(builder: Any, rows: Any, stride: Any, columns: Any, pairs: Any) -> list[Any]:
    """Sums of products of ROWS rows with SUMS * VECTORS columns, row by row: vectors of 32-bit integers.

    Rows begin at the address `rows`, `stride` bytes apart. At the address `columns`, two factors of each column follow
    each other, `pairs` times, at least once.
    """
    binding.initialize_native_asmparser()
    addresses = [builder.add(rows, builder.mul(stride, I64(3 * place))) for place in range(_ADDRESSES)]
    changing = [*addresses, columns, pairs]
    sums = [f"zmm{VECTORS + _FACTORS + place}" for place in range(ROWS * VECTORS)]
    used = [f"zmm{place}" for place in range(VECTORS + _FACTORS)]
    # What changes is to LLVM something new in the same registers (=, and the places of what is given); none of them may
    # be the stride's too, which is read in every round (&). Counting sets flags that LLVM may still need.
    constraints = [
        *["=&r"] * len(changing), *(f"={{{name}}}" for name in sums), *map(str, range(len(changing))), "r",
        *(f"~{{{name}}}" for name in (*used, "flags", "memory")),
    ]  # fmt: skip
    kinds = [kind for kind, count in ((I64, len(changing)), (_INTS, len(sums))) for _ in range(count)]
    kind = ir.FunctionType(ir.LiteralStructType(kinds), [I64] * (len(changing) + 1))
    code = "\n".join(_code(sums, stride=f"${2 * len(changing) + len(sums)}"))
    made = builder.asm(kind, code, ",".join(constraints), [*changing, stride], False)
    return [builder.extract_value(made, len(changing) + place) for place in range(len(sums))]


def _code(sums: list[str], stride: str) -> list[str]:
    """Lines in the order of AT&T: from, to. What begins with $ stands for what changes, in its order, or a number."""
    addresses, columns, pairs = [f"${place}" for place in range(_ADDRESSES)], f"${_ADDRESSES}", f"${_ADDRESSES + 1}"
    loop = [f"vmovdqu64 {_BYTES * place}({columns}), %zmm{place}" for place in range(VECTORS)]
    for row in range(ROWS):
        address, behind = addresses[row // 3], ("", f",{stride}", f",{stride},2")[row % 3]
        factors = VECTORS + row % _FACTORS
        loop.append(f"vpbroadcastd ({address}{behind}), %zmm{factors}")
        own = sums[VECTORS * row : VECTORS * (row + 1)]
        loop += [f"vpdpwssd %zmm{place}, %zmm{factors}, %{name}" for place, name in enumerate(own)]
    return [
        *(f"vpxord %{name}, %{name}, %{name}" for name in sums),
        "1:",
        *loop,
        *(f"addq $$4, {address}" for address in addresses),
        f"addq $${_BYTES * VECTORS}, {columns}",
        f"decq {pairs}",
        "jnz 1b",
    ]
