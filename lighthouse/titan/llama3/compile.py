"""What torch.compile of single transformer blocks needs beyond upstream."""

from typing import TYPE_CHECKING, Any

import torch
import torch._inductor.config as inductor
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from lighthouse.titan.config.stages import Stages
from lighthouse.titan.llama3.layers import StagedAttention, wrapped_modules

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

_VALUES_AT_A_TIME = 8192
_INDUCTORS_MOST = 128
"""Rows that a program gets."""


def prepare_to_compile(model: Any) -> None:
    """Get a Transformer ready whose blocks are about to be compiled one by one."""
    _allow_all_variants(model)
    if model.tok_embeddings is not None:
        model.tok_embeddings.register_forward_hook(_wait)


def compile_each_stage(job_config: "JobConfig") -> None:
    """Let torch.compile take shapes of stages, validation and documents as they are.

    From the second length on it would make them variable, which is slower, and other in a process
    that has seen the first one than in one that goes on from a checkpoint behind it.
    """
    stages, config = Stages.of(job_config), torch._dynamo.config
    if job_config.compile.enable and job_config.training.document_mask:
        # Each kind of layer is compiled for each number of places for documents, which are few.
        config.recompile_limit = config.accumulated_recompile_limit
    if job_config.compile.enable and (stages.listed or job_config.validation.enable):
        config.automatic_dynamic_shapes = False
    if job_config.compile.enable and stages.listed:
        config.recompile_limit = max(config.recompile_limit, 8 + 4 * len(list(stages)))


def choose_norm_kernels(job_config: "JobConfig", dim: int) -> None:
    """Set how inductor makes a norm's two gradients where its own choice is slow (docs/speed.md).

    It makes both in one kernel: the more rows there are the more it gives to a program, and of
    those a thirty-second at a time. Four of 4,096 channels take twelve times as long for a row as
    two do. And with the casts of float8 products fused in, transposed ones too, such a kernel takes
    longer than all that it saves.

    Args:
        dim: channels of a row.
    """
    if not (job_config.compile.enable and torch.cuda.is_available()):
        return
    if job_config.model.converters:
        inductor.triton.mix_order_reduction = False
    section = job_config.parallelism
    ranks = section.context_parallel_degree * section.tensor_parallel_degree
    jobs = [stage.job(job_config).training for stage in Stages.of(job_config)]
    rows = max(training.local_batch_size * training.seq_len for training in jobs) // ranks
    programs = 8 * torch.cuda.get_device_properties().multi_processor_count  # as inductor has it
    most = 32 * max(1, _VALUES_AT_A_TIME // dim)
    if 2 * most <= min(rows // programs, _INDUCTORS_MOST):
        inductor.triton.mix_order_reduction_split_size = most


def _allow_all_variants(model: nn.Module) -> None:
    """Let torch.compile specialise the blocks' one code for each kind of layer.

    A kind is compiled for training and for validation, in every stage. Beyond PyTorch's limit a
    run would stop, perhaps as late as at the switch to dense.
    """
    modules = [m for m in wrapped_modules([model]) if isinstance(m, StagedAttention)]
    kinds = len({config for module in modules for config in (module.config, *module.by_stage)})
    stages = max((len(module.by_stage) for module in modules), default=1)
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 8 + 4 * kinds * stages)


class _Waited(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: AsyncCollectiveTensor) -> Tensor:
        return x.wait()

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:
        return grad


def _wait(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
    """Under tensor parallelism, wait for the collective that the embedding ends with.

    torch 2.13 loses the gradient of a compiled block's input that is still on its way.
    """
    return _Waited.apply(embedded) if isinstance(embedded, AsyncCollectiveTensor) else embedded
