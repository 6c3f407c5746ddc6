import re
from collections import Counter

import pytest
from llvmlite import binding, ir

from audioscore.muq_cpu.compiled import I64
from audioscore.muq_cpu.int16_kernels import VNNI_SIZES, vnni_sums_of_pairs

ROWS, SUMS, VECTORS = VNNI_SIZES


@pytest.fixture(scope="module")
def assembled() -> list[str]:
    """The loop as compiled for an x86 processor with VNNI."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        target = binding.Target.from_triple("x86_64-unknown-linux-gnu")
    except RuntimeError:
        pytest.skip("no x86 target in this LLVM")
    module = ir.Module()
    kind = ir.VectorType(ir.IntType(32), SUMS)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 3 + [kind.as_pointer()]), "sums")
    builder = ir.IRBuilder(function.append_basic_block())
    rows, columns, pairs, out = function.args
    # The stride equals the count: in one register, counting would change the stride.
    for number, one in enumerate(vnni_sums_of_pairs(builder, rows, pairs, columns, pairs)):
        builder.store(one, builder.gep(out, [I64(number)]))
    builder.ret_void()
    machine = target.create_target_machine(features="+avx512f,+avx512bw,+avx512vnni,+avx512vl")
    code: str = machine.emit_assembly(binding.parse_assembly(str(module)))
    machine.emit_object(binding.parse_assembly(str(module)))  # as Numba does
    return [line.strip() for line in code.splitlines()]


def test_one_instruction_a_product(assembled: list[str]) -> None:
    count = Counter(line.split()[0] for line in assembled if line)
    assert count["vpdpwssd"] == ROWS * VECTORS
    assert count["vpbroadcastd"] == ROWS
    assert count["vpmaddwd"] == 0
    sums = [line.rpartition(",")[2].strip() for line in assembled if line.startswith("vpdpwssd")]
    assert len(set(sums)) == ROWS * VECTORS
    assert all(f"vpxord {one}, {one}, {one}" in " ".join(" ".join(assembled).split()) for one in sums)


def test_the_stride_is_in_a_register_that_the_loop_does_not_change(assembled: list[str]) -> None:
    strides = {found[1] for line in assembled if (found := re.match(r"vpbroadcastd\s+\(%\w+,(%\w+)", line))}
    changed = {found[1] for line in assembled if (found := re.match(r"(?:addq|decq)\s+.*?(%\w+)$", line))}
    assert len(strides) == 1
    assert not strides & changed
