"""What torch.compile of single transformer blocks needs beyond upstream."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from lighthouse.titan.model import lighthouse_modules


def prepare_to_compile(model: Any) -> None:
    """Get a Transformer ready whose blocks are about to be compiled one by one."""
    _allow_all_variants(model)
    if model.tok_embeddings is not None:
        model.tok_embeddings.register_forward_hook(_wait)


def _allow_all_variants(model: nn.Module) -> None:
    """Let the blocks' common code be compiled as often as a run can ask for.

    A variant is a layer's attention (dense, or Lighthouse with its own parameters) in training or
    validation. The switch adds the dense one of Lighthouse layers, so without this a run could end
    there, at dynamo's default limit of 8.
    """
    variants = {module.config for module in lighthouse_modules([model])} | {"dense", "switched"}
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 2 * len(variants))


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
