"""The innermost loop of products of 16-bit integers as a processor with AVX-512 VNNI has it, in assembler.

One of its instructions multiplies 32 pairs of integers and adds them to 16 sums. LLVM, left to choose, makes two of
it for Intel's processors, which should then gain nothing over float32.
"""

from typing import Any

from llvmlite import binding, ir

from audioscore.muq_cpu.vector_kernels import I32, I64

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
