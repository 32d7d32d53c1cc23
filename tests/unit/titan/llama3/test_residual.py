from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torchtitan.config import JobConfig
from torchtitan.models.llama3 import Transformer, llama3_args

from lighthouse.titan.llama3.residual import KeepResidualSum, keep_residual_sums


@pytest.mark.parametrize("kept", [True, False])
def test_a_block_keeps_the_sum_and_not_what_attention_adds(kept: bool) -> None:
    torch._dynamo.reset()
    model = Transformer(replace(llama3_args["tiny_byte"], max_seq_len=32))
    with torch.no_grad():
        model.init_weights()
    block = model.layers["0"]

    def partition(joint: torch.fx.GraphModule, inputs: list[Any], **how: Any) -> Any:
        if kept:
            KeepResidualSum()(joint.graph)
        return min_cut_rematerialization_partition(joint, inputs, **how)

    backend = aot_autograd(
        fw_compiler=lambda graph, _inputs: make_boxed_func(graph.forward),
        partition_fn=partition,
    )
    x = torch.randn(1, 32, block.dim, requires_grad=True, generator=torch.manual_seed(0))
    saved: list[torch.Tensor] = []

    def save(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    compiled = torch.compile(block, backend=backend, fullgraph=True)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        out = compiled(x, model.freqs_cis, attention_masks=None)
    (grad,) = torch.autograd.grad(out.sum(), x)
    added = block.attention(block.attention_norm(x), model.freqs_cis, None)
    for tensor, expected in ((x + added, kept), (added, not kept)):
        found = [
            other.numel() == tensor.numel() and torch.allclose(other.reshape(tensor.shape), tensor)
            for other in saved
        ]
        assert any(found) == expected
    expected_out = block(x, model.freqs_cis, attention_masks=None)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(grad, torch.autograd.grad(expected_out.sum(), x)[0])


@pytest.mark.parametrize(
    ("compiled", "checkpointing", "kept"),
    [
        (True, "none", True),
        (True, "selective", False),
        (True, "full", False),
        (False, "none", False),
    ],
)
@torch._inductor.config.patch({"joint_custom_pre_pass": None})
def test_sums_are_kept_where_blocks_are_compiled_and_nothing_runs_again(
    compiled: bool, checkpointing: Any, kept: bool
) -> None:
    config = JobConfig()
    config.compile.enable, config.activation_checkpoint.mode = compiled, checkpointing
    keep_residual_sums(config)
    assert isinstance(torch._inductor.config.joint_custom_pre_pass, KeepResidualSum) == kept
