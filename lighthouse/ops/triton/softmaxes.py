"""Joining attention over disjoint sets of keys: two softmaxes into one, and gradients into a sum.

The kernels work on (B, C, H, R, D): C blocks of R rows of a sequence, whose places in memory are
anything that strides can say. Rows of the second operand may come in reversed order. Elements are
computed by one program each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096


@triton.jit
def _merge_kernel(
    out,
    lse,
    part,
    part_lse,
    num_rows,
    out_b,
    out_c,
    out_h,
    out_r,
    lse_b,
    lse_c,
    lse_h,
    lse_r,
    part_b,
    part_c,
    part_h,
    part_r,
    part_lse_b,
    part_lse_c,
    part_lse_h,
    part_lse_r,
    C: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    REVERSED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BATCH_HEADS: tl.constexpr,  # of all blocks
):
    """A program has BLOCK_R rows of one head of one block."""
    i_bch = tl.program_id(0) % BATCH_HEADS
    i_r = tl.program_id(0) // BATCH_HEADS * BLOCK_R + tl.arange(0, BLOCK_R)
    i_d = tl.arange(0, BLOCK_D)
    in_r = i_r < num_rows
    mask = in_r[:, None] & (i_d < D)[None, :]
    i_b = (i_bch // H // C).to(tl.int64)
    i_c = (i_bch // H % C).to(tl.int64)
    i_h = (i_bch % H).to(tl.int64)
    i_r = i_r.to(tl.int64)
    i_part = num_rows - 1 - i_r if REVERSED else i_r

    p_lse = lse + i_b * lse_b + i_c * lse_c + i_h * lse_h + i_r * lse_r
    p_part_lse = part_lse + i_b * part_lse_b + i_c * part_lse_c + i_h * part_lse_h
    b_lse = tl.load(p_lse, mask=in_r, other=0)
    b_part_lse = tl.load(p_part_lse + i_part * part_lse_r, mask=in_r, other=0)
    b_largest = tl.maximum(b_lse, b_part_lse)
    b_sum = tl.exp(b_lse - b_largest) + tl.exp(b_part_lse - b_largest)
    b_share = tl.exp(b_part_lse - b_largest) / b_sum  # of the part in the whole softmax
    # More than one thread has each row's sum, and reads it, before one of them replaces it.
    tl.debug_barrier()
    tl.store(p_lse, b_largest + tl.log(b_sum), mask=in_r)

    # (BLOCK_R, BLOCK_D)
    p_out = out + i_b * out_b + i_c * out_c + i_h * out_h
    p_out = p_out + (i_r * out_r)[:, None] + i_d[None, :]
    p_part = part + i_b * part_b + i_c * part_c + i_h * part_h
    p_part = p_part + (i_part * part_r)[:, None] + i_d[None, :]
    b_out = tl.load(p_out, mask=mask, other=0).to(tl.float32)
    b_part = tl.load(p_part, mask=mask, other=0).to(tl.float32)
    b_out += b_share[:, None] * (b_part - b_out)
    tl.store(p_out, b_out.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _rows_kernel(
    total,
    part,
    num_rows,
    total_b,
    total_c,
    total_h,
    total_r,
    part_b,
    part_c,
    part_h,
    part_r,
    C: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    REVERSED: tl.constexpr,
    ADD: tl.constexpr,  # to what total is, instead of taking its place
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BATCH_HEADS: tl.constexpr,  # of all blocks
):
    """A program has BLOCK_R rows of one head of one block."""
    i_bch = tl.program_id(0) % BATCH_HEADS
    i_r = tl.program_id(0) // BATCH_HEADS * BLOCK_R + tl.arange(0, BLOCK_R)
    i_d = tl.arange(0, BLOCK_D)
    mask = (i_r < num_rows)[:, None] & (i_d < D)[None, :]
    i_b = (i_bch // H // C).to(tl.int64)
    i_c = (i_bch // H % C).to(tl.int64)
    i_h = (i_bch % H).to(tl.int64)
    i_r = i_r.to(tl.int64)
    i_part = num_rows - 1 - i_r if REVERSED else i_r

    # (BLOCK_R, BLOCK_D)
    p_total = total + i_b * total_b + i_c * total_c + i_h * total_h
    p_total = p_total + (i_r * total_r)[:, None] + i_d[None, :]
    p_part = part + i_b * part_b + i_c * part_c + i_h * part_h
    p_part = p_part + (i_part * part_r)[:, None] + i_d[None, :]
    b_part = tl.load(p_part, mask=mask, other=0)
    if ADD:
        b_total = tl.load(p_total, mask=mask, other=0).to(tl.float32)
        b_part = (b_total + b_part.to(tl.float32)).to(total.dtype.element_ty)
    tl.store(p_total, b_part, mask=mask)


def merge(
    out_BCHRD: Tensor,
    lse_BCHR: Tensor,
    part_BCHRD: Tensor,
    part_lse_BCHR: Tensor,
    *,
    backwards: bool,
) -> None:
    """Let the softmax of ``out`` and ``lse`` extend over the keys of ``part`` too, in place.

    Args:
        out_BCHRD: outputs of attention; D is contiguous, as in ``part``.
        lse_BCHR: fp32, log-sum-exp of their logits.
        part_BCHRD: outputs of the same queries over other keys.
        part_lse_BCHR: fp32, likewise.
        backwards: the rows of ``part`` come last first.
    """
    grid, sizes = _launch(out_BCHRD)
    _merge_kernel[grid](
        out_BCHRD,
        lse_BCHR,
        part_BCHRD,
        part_lse_BCHR,
        out_BCHRD.shape[3],
        *out_BCHRD.stride()[:4],
        *lse_BCHR.stride(),
        *part_BCHRD.stride()[:4],
        *part_lse_BCHR.stride(),
        REVERSED=backwards,
        **sizes,
    )


def add(total_BCHRD: Tensor, part_BCHRD: Tensor, *, backwards: bool) -> None:
    """Add in place; D is contiguous in both.

    Args:
        backwards: the rows of ``part`` come last first.
    """
    _rows(total_BCHRD, part_BCHRD, ADD=True, REVERSED=backwards)


def reverse(x_BCHRD: Tensor) -> Tensor:
    """The rows of each block last first, in memory of its own in the order of x's; D is contiguous.

    As `torch.Tensor.flip`, which takes twice the time that the bytes should take.
    """
    reversed_BCHRD = torch.empty_like(x_BCHRD)
    _rows(reversed_BCHRD, x_BCHRD, ADD=False, REVERSED=True)
    return reversed_BCHRD


def _rows(total_BCHRD: Tensor, part_BCHRD: Tensor, **what: bool) -> None:
    grid, sizes = _launch(total_BCHRD)
    _rows_kernel[grid](
        total_BCHRD,
        part_BCHRD,
        total_BCHRD.shape[3],
        *total_BCHRD.stride()[:4],
        *part_BCHRD.stride()[:4],
        **what,
        **sizes,
    )


def _launch(x_BCHRD: Tensor) -> tuple[tuple[int], dict[str, int]]:
    batch, blocks, heads, num_rows, head_dim = x_BCHRD.shape
    block_d = triton.next_power_of_2(head_dim)
    block_r = max(1, min(triton.next_power_of_2(num_rows), _TILE // block_d))
    batch_heads = batch * blocks * heads
    sizes = {"C": blocks, "H": heads, "D": head_dim, "BLOCK_R": block_r, "BLOCK_D": block_d}
    grid = (batch_heads * triton.cdiv(num_rows, block_r),)
    return grid, {**sizes, "BATCH_HEADS": batch_heads}
