"""Lighthouse layers in a Llama, and the stage they are in."""

import copy
from dataclasses import replace

import torch
from torchtitan.config import JobConfig
from torchtitan.models.llama3 import Transformer, llama3_args

from lighthouse.config import LighthouseConfig, WindowConfig
from lighthouse.titan.config.section import Lighthouse
from lighthouse.titan.config.stages import Stages
from lighthouse.titan.llama3.layers import (
    StagedAttention,
    apply_lighthouse,
    dense_stage,
    selecting_modules,
    set_stage,
    stage_metrics,
    wrapped_modules,
)
from tests.support.models import draw_weights, lighthouse_layers, on_meta


def build(*args: str):
    """The job's configuration and its model on the meta device."""
    from torchtitan.config import ConfigManager

    job = ConfigManager(checked=False).parse_args(list(args))
    return job, on_meta(job)


def test_overrides_and_dense_layers_reach_the_model():
    args = "--model.flavor 530M_byte --training.seq_len 98304 --lighthouse.enable".split()
    args += "--lighthouse.dense_layers 0 1 28 29".split()
    args += ["--lighthouse.layer_overrides", "2-3:topk=2048 scorer=gla,4:num_levels=4"]
    _, model = build(*args)
    layers = lighthouse_layers(model)
    assert set(layers) == set(range(2, 28))
    assert [layers[i].config.topk for i in (2, 3, 4, 5)] == [2048, 2048, 1536, 1536]
    assert [layers[i].config.scorer for i in (2, 3, 4)] == ["gla", "gla", "norm"]
    assert [layers[i].config.num_levels for i in (3, 4)] == [3, 4]


WINDOWS = [
    *"--model.flavor tiny_byte --training.seq_len 512 --lighthouse.enable".split(),
    *"--lighthouse.topk 16 --lighthouse.stratum 8 --lighthouse.window 64".split(),
    *"--lighthouse.dense_layers 0 --lighthouse.window_layers 1".split(),
]


def test_windows_reach_the_model_and_leave_lighthouse_in_the_other_layers():
    job, model = build(*WINDOWS, "--lighthouse.dense_from_step", "5")
    kinds = {i: layer.config for i, layer in lighthouse_layers(model).items()}
    lighthouse = LighthouseConfig(topk=16, stratum=8)
    assert kinds == {1: WindowConfig(64), 2: lighthouse, 3: lighthouse}
    for step, active in ((4, 2), (5, 0)):
        set_stage([model], Stages.of(job).at(step))
        assert all(module.dense == (step == 5) for module in wrapped_modules([model]))
        assert len(selecting_modules([model])) == active
        assert stage_metrics([model]) == {"lighthouse/active_layers": active}
    set_stage([model], Stages.of(job).at(1))
    with dense_stage([model]):
        assert all(module.dense for module in wrapped_modules([model]))
    assert not any(module.dense for module in wrapped_modules([model]))


def test_a_model_of_windows_alone_has_no_lighthouse_metrics():
    _, model = build(*WINDOWS, *"--lighthouse.window_layers 1 2 3".split())
    assert stage_metrics([model]) == {}


def test_parameter_names_are_those_of_the_dense_model():
    _, dense = build("--model.flavor", "tiny_byte")
    _, model = build(
        *"--model.flavor tiny_byte --lighthouse.enable --training.seq_len 24576".split()
    )
    assert lighthouse_layers(model)
    assert list(model.state_dict()) == list(dense.state_dict())


def test_stage_is_a_function_of_the_step():
    job, model = build(
        *"--model.flavor tiny_byte --training.seq_len 24576 --lighthouse.enable".split(),
        *"--lighthouse.dense_layers 0 --lighthouse.dense_from_step 5".split(),
    )
    stages = Stages.of(job)
    for step, active in ((4, 3), (5, 0), (9, 0), (1, 3)):
        set_stage([model], stages.at(step))
        assert stage_metrics([model]) == {"lighthouse/active_layers": active}
    job.lighthouse.dense_from_step = None
    set_stage([model], Stages.of(job).at(10**6))
    assert stage_metrics([model]) == {"lighthouse/active_layers": 3}


def test_a_dense_model_has_no_stage_metrics():
    _, model = build("--model.flavor", "tiny_byte")
    assert stage_metrics([model]) == {}


def test_each_stage_is_the_model_of_its_own_configuration() -> None:
    """A model with stages, put into each, computes what one built for that stage alone does."""
    job = JobConfig()
    job.training.seq_len, job.training.steps = 64, 4
    job.lighthouse = Lighthouse(enable=True, topk=4, stratum=2, dense_layers=[0])
    job.stages = [
        {"steps": 1, "attention": "dense"},
        {"steps": 1, "attention": "lighthouse"},
        {"steps": 1, "attention": "lighthouse", "topk": 2, "dense_layers": [], "seq_len": 32},
        {"steps": 1, "attention": "lighthouse", "scorer": "dilated"},
    ]
    torch.manual_seed(0)
    staged = Transformer(replace(llama3_args["tiny_byte"], max_seq_len=64))
    with torch.no_grad():
        staged.init_weights()
    plain = copy.deepcopy(staged)
    apply_lighthouse(staged, job)
    layers = lighthouse_layers(staged).values()
    assert [type(layer) for layer in layers] == [StagedAttention] * 4
    for stage in (*Stages.of(job), Stages.of(job).at(1)):
        alone = copy.deepcopy(plain)
        apply_lighthouse(alone, stage.job(job))
        set_stage([staged], stage)
        tokens = torch.randint(0, 256, (1, stage.seq_len), generator=torch.manual_seed(1))
        assert torch.equal(staged(tokens), alone(tokens))


def test_a_document_is_what_it_is_alone_in_dense_and_window_layers() -> None:
    """The first layer is always dense, the others are windows, and then dense in another stage."""
    job, model = build(
        *"--model.flavor tiny_byte --training.seq_len 64 --training.document_mask".split(),
        *"--lighthouse.enable --lighthouse.dense_layers 0 --lighthouse.window 5".split(),
        *"--lighthouse.window_layers 1 2 3 --lighthouse.dense_from_step 5".split(),
    )
    draw_weights(model)
    tokens = torch.randint(256, (1, 64))
    starts = torch.tensor([[0, 1, 30, 64]], dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in (1, 29, 34)])[None]
    for step in (1, 5):
        set_stage([model], Stages.of(job).at(step))
        packed = model(tokens, attention_masks=starts, positions=positions)
        for start, end in ((0, 1), (1, 30), (30, 64)):
            alone = model(tokens[:, start:end])
            torch.testing.assert_close(packed[:, start:end], alone)


def test_documents_reach_lighthouse_layers_in_a_model() -> None:
    """What is in one document changes nothing in the tokens of another, where all is selected."""
    job, model = build(
        *"--model.flavor tiny_byte --training.seq_len 64 --training.document_mask".split(),
        *"--lighthouse.enable --lighthouse.topk 16 --lighthouse.stratum 16".split(),
        *"--lighthouse.num_levels 2".split(),
    )
    draw_weights(model)
    set_stage([model], Stages.of(job).at(1))
    tokens = torch.randint(256, (1, 64))
    starts = torch.tensor([[0, 32]], dtype=torch.int32)
    changed = torch.cat([tokens[:, :32].flip(1), tokens[:, 32:]], dim=1)
    one, other = (model(x, attention_masks=starts) for x in (tokens, changed))
    assert torch.equal(one[:, 32:], other[:, 32:])
    assert not torch.equal(model(tokens)[:, 32:], model(changed)[:, 32:])
