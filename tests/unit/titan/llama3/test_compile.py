from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchtitan.config import JobConfig
from torchtitan.models.llama3 import Transformer, llama3_args
from torchtitan.models.llama3.infra.parallelize import apply_compile

from lighthouse.titan.config.section import Lighthouse
from lighthouse.titan.config.stages import Stages
from lighthouse.titan.llama3.compile import choose_norm_kernels, compile_each_stage
from lighthouse.titan.llama3.layers import apply_lighthouse, set_stage

SEQ_LEN = 64


@pytest.mark.thorough
# As small for these 10 variants as the default of 8 is for those of a larger model.
@torch._dynamo.config.patch(recompile_limit=4)
def test_all_variants_of_a_block_are_compiled() -> None:
    """Layers that differ, in training and validation, before and after the switch to dense."""
    torch._dynamo.reset()
    config = JobConfig()
    config.training.seq_len, config.training.steps = SEQ_LEN, 2
    config.lighthouse = Lighthouse(
        enable=True,
        num_levels=2,
        topk=4,
        stratum=2,
        dense_layers=[0],
        layer_overrides=["2:topk=2", "3:scorer=dilated"],
        dense_from_step=2,
    )
    model = Transformer(replace(llama3_args["tiny_byte"], max_seq_len=SEQ_LEN))
    with torch.no_grad():
        model.init_weights()
    apply_lighthouse(model, config)
    blocks = dict(model.layers.named_children())
    config.compile.backend = "eager"
    apply_compile(model, config.compile)

    tokens = torch.randint(0, 256, (1, SEQ_LEN), generator=torch.manual_seed(0))
    for step in (1, 2):
        set_stage([model], Stages.of(config).at(step))
        model.train()
        training = model(tokens)
        model.eval()
        with torch.no_grad():
            validation = model(tokens)
            expected = model.tok_embeddings(tokens)
            for block in blocks.values():
                expected = block(expected, model.freqs_cis, attention_masks=None)
            expected = model.output(model.norm(expected))
        torch.testing.assert_close(training, expected)
        torch.testing.assert_close(validation, expected)


@pytest.mark.parametrize("validated", [False, True])
@torch._dynamo.config.patch(recompile_limit=2, automatic_dynamic_shapes=True)
def test_each_length_is_compiled_as_it_is(validated: bool) -> None:
    """Of dense stages, which are more than PyTorch's limit, and of validation without stages."""
    torch._dynamo.reset()
    lengths = [16, 32] if validated else [16, 32, 48, 64]
    config = JobConfig()
    config.compile.enable = True
    if validated:
        config.validation.enable = True
    else:
        config.stages = [{"steps": 1, "attention": "dense", "seq_len": n} for n in lengths]
    compile_each_stage(config)
    seen: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        (only,) = inputs  # a variable length would be another one
        seen.append(only.shape[0])
        return graph.forward

    compiled = torch.compile(lambda x: x * 2, backend=backend, fullgraph=True)
    for length in [*lengths, *lengths]:
        compiled(torch.zeros(length))
    assert seen == lengths


@pytest.fixture
def an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    h100 = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: h100)


@pytest.mark.parametrize(
    ("dim", "seq_len", "degree", "rows"),
    [
        (4096, 524288, 2, 64),
        (4096, 524288, 4, None),  # inductor gives a program 64 by itself
        (8192, 131072, 2, None),
        (8192, 262144, 2, 32),
        (2048, 2**20, 1, None),  # as many as it ever gives
        (1024, 2**20, 1, None),
    ],
)
@torch._inductor.config.patch({"triton.mix_order_reduction_split_size": None})
@pytest.mark.usefixtures("an_h100")
def test_a_norms_kernel_gets_no_more_rows_than_it_can_hold(
    dim: int, seq_len: int, degree: int, rows: int | None
) -> None:
    config = JobConfig()
    config.compile.enable = True
    config.parallelism.context_parallel_degree = degree
    config.training.seq_len, config.training.local_batch_size = 2048, 1
    config.stages = [{"steps": 1, "attention": "dense", "seq_len": n} for n in (2048, seq_len)]
    choose_norm_kernels(config, dim)
    assert torch._inductor.config.triton.mix_order_reduction_split_size == rows


@torch._inductor.config.patch({"triton.mix_order_reduction": True})
@pytest.mark.usefixtures("an_h100")
def test_a_norms_gradients_are_apart_where_products_are_converted() -> None:
    config = JobConfig()
    config.compile.enable = True
    choose_norm_kernels(config, 1024)
    assert torch._inductor.config.triton.mix_order_reduction
    config.model.converters = ["quantize.linear.float8"]
    choose_norm_kernels(config, 1024)
    assert not torch._inductor.config.triton.mix_order_reduction
