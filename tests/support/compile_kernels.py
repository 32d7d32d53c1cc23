"""Compile every kernel for an H100, which needs no GPU: the interpreter accepts more than Triton.

    python -m tests.support.compile_kernels bf16 fp32

compiles those of these types. Run in a process without TRITON_INTERPRET; exits with the compiler's
error.
"""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lighthouse.ops.triton.pull import _pull_kernel
from lighthouse.ops.triton.select import _select_kernel
from lighthouse.ops.triton.softmaxes import _merge_kernel, _rows_kernel
from lighthouse.ops.triton.summarize import _summarize_kernel
from lighthouse.ops.triton.windows import _windows_kernel

# Of a launch of queries, keys and values, and of queries alone.
THREE = {"HEADS": (8, 4, 4), "ALL_HEADS": 16, "KV_HEADS": 4, "BATCH": 2}
ONE = {"HEADS": (8,), "ALL_HEADS": 8, "KV_HEADS": 4, "BATCH": 2}
BY_TENSOR = ("x", "rows", "coarsest", "maxima")
H100 = GPUTarget("cuda", 90, 32)


def compile_kernel(kernel, pointers: dict[str, str], constants: dict[str, object]) -> None:
    constants = {name: constants[name] for name in kernel.arg_names if name in constants}
    signature = {name: pointers.get(name, "i32") for name in kernel.arg_names}
    for name in kernel.arg_names if "HEADS" in constants else ():
        if name in BY_TENSOR or "stride_" in name:
            signature[name] = (signature[name],) * len(constants["HEADS"])
    signature |= dict.fromkeys(constants, "constexpr")
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    triton.compile(source, target=H100)
    print(kernel.__name__, constants)


# By the type of values: levels and pooling factor, chunks, head dimension.
CASES = {
    "bf16": ((3, 4), 1, 128),
    "fp32": ((2, 3), 2, 48),
    "fp16": ((3, 2), 1, 256),
}

for dtype in sys.argv[1:]:
    (levels, p), chunks, dim = CASES[dtype]
    rows = dict.fromkeys(("x", "rows", "coarsest"), f"*{dtype}")
    rows |= {"index": "*i32", "slot": "*i32", "maxima": "*fp32", "first_token": "*i32"}
    block = {"D": dim, "BLOCK_D": triton.next_power_of_2(dim), "BLOCK_E": 8}
    block |= {"BLOCK_S": 8, "BLOCK_N": 8}
    shape = {"L": levels, "P": p, "CHUNKS": chunks, "WIDTH": p ** (levels - 1)}
    for flag in (True, False):
        common = block | shape | {"SPOKEN": flag, "CAUSAL": flag}
        common |= {"DOCUMENTS": flag and chunks == 2}
        unroll = {"UNROLL": min(p - 1, 4)}
        scored = THREE | {"HEADS": (8, 4), "ALL_HEADS": 12, "SCORED": True}
        unscored = (ONE if flag else THREE) | {"SCORED": False, "maxima": None}
        for tensors in (scored, unscored):
            compile_kernel(_summarize_kernel, rows, common | unroll | tensors)
        not_given = {} if common["DOCUMENTS"] else {"first_token": None}
        moved = common | not_given | (ONE if flag else THREE)
        compile_kernel(_windows_kernel, rows, moved | ({"coarsest": None} if flag else {}))
        compile_kernel(_pull_kernel, rows, moved)
        scores = {"query_maxima": "*fp32", "key_maxima": "*fp32"}
        ints = dict.fromkeys(("index", "slot", "scratch", "first_token"), "*i32")
        strata = {"M": 128, "STRATA": 12, "COVER_PREFIX": flag, "KV_HEADS": 4, "G": 2}
        # The coarsest level in registers, or in blocks.
        strata |= {"COARSEST_TILE": 1024, "FINER_TILE": 512, "BLOCK_MAX": 1024 if flag else 512}
        strata |= {"COARSEST_WIDTH": p ** (levels - 1), "BITS": 1 + flag}
        parts = dict.fromkeys(("out", "part", "total"), f"*{dtype}")
        parts |= {"lse": "*fp32", "part_lse": "*fp32"}
        of_blocks = block | {"H": 8, "C": 3, "BLOCK_R": 8, "REVERSED": flag}
        compile_kernel(_merge_kernel, parts, of_blocks)
        for adds in (True, False):
            compile_kernel(_rows_kernel, parts, of_blocks | {"ADD": adds})
        compile_kernel(_select_kernel, scores | ints, common | strata)
