"""Model FLOPs of what the layers really do."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from lighthouse.config import WindowConfig
from lighthouse.cost.sizes import window_square
from lighthouse.scorers import scoring_flops_per_token
from lighthouse.titan.llama3.layers import wrapped_modules

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


def flops_per_token(
    model_parts: Iterable[nn.Module],
    dense_flops_per_token: int,
    model_args: Any,
    job_config: "JobConfig",
    counted_seq_len: int | None = None,
    pairs_left: float = 1.0,
) -> int:
    """FLOPs per token and step in the present stage, by torchtitan's conventions.

    Those count 12 * heads * head dimension * N per token for attention (forward and backward, no
    discount for the causal mask, no recomputation). A layer in the Lighthouse stage attends S x S
    instead of N x N, after scoring, which has no backward; pooling, norms and scatter are bandwidth
    and count nothing. A window counts as the pairs that it is of N x N.

    Args:
        model_parts: the model, in its present stage.
        dense_flops_per_token: of the same model with dense attention everywhere, by torchtitan.
        model_args: torchtitan's, for the number and width of a Llama's heads.
        job_config: torchtitan's ``JobConfig`` of the present stage, for N and the ranks that share
            a sequence.
        counted_seq_len: the N that ``dense_flops_per_token`` is for; None for the stage's.
        pairs_left: the share of the N x N that documents leave. A Lighthouse layer is taken to have
            the same share of its S x S, and a window as much of its pairs as there is room for.
    """
    seq_len, ranks = job_config.training.seq_len, job_config.parallelism.context_parallel_degree
    flops: float = dense_flops_per_token
    if getattr(model_args, "tied", False):  # counted as an embedding, which multiplies nothing
        flops += 6 * model_args.dim * model_args.vocab_size
    if counted_seq_len not in (None, seq_len):
        flops += 12 * model_args.n_layers * model_args.dim * (seq_len - counted_seq_len)
    if pairs_left != 1.0:
        flops += 12 * model_args.n_layers * model_args.dim * (pairs_left - 1) * seq_len
    for module in wrapped_modules(model_parts):
        if module.dense:
            continue
        config = module.config
        if isinstance(config, WindowConfig):
            square = min(window_square(config.window, seq_len), pairs_left * seq_len**2)
        else:
            rows = ranks * config.gathered_len(seq_len // ranks)
            square = pairs_left * rows**2
            heads, head_dim = model_args.n_heads, model_args.dim // model_args.n_heads
            flops += scoring_flops_per_token(config, seq_len // ranks, heads, head_dim)
        flops += 12 * model_args.dim * (square / seq_len - pairs_left * seq_len)
    return round(flops)
