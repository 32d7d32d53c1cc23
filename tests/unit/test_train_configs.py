"""Every TOML in train_configs/ parses and builds on the meta device with the layers it promises."""

import re
from pathlib import Path

import pytest
import torch

from lighthouse import LighthouseAttention
from lighthouse.titan.model import apply_lighthouse, set_stage, stage_metrics
from lighthouse.titan.plan import parse, plan

TRAIN_CONFIGS = Path(__file__).parents[2] / "train_configs"
FILES = sorted(f for f in TRAIN_CONFIGS.rglob("*.toml") if f.parent.name != "sweeps")
GPUS = {"cp8_1m_k4096.toml": 32}


def build(*args: str):
    """The job's configuration and its model on the meta device."""
    from torchtitan.protocols.train_spec import get_train_spec

    job = parse(list(args))
    spec = get_train_spec(job.model.name)
    with torch.device("meta"):
        model = spec.model_cls(spec.model_args[job.model.flavor])
        apply_lighthouse(model, job)
    return job, model


def lighthouse_layers(model) -> dict[int, LighthouseAttention]:
    modules = {int(i): block.attention.inner_attention for i, block in model.layers.items()}
    return {i: m for i, m in modules.items() if isinstance(m, LighthouseAttention)}


def each(files):
    return pytest.mark.parametrize("file", files, ids=lambda f: str(f.relative_to(TRAIN_CONFIGS)))


def test_there_are_train_configs():
    assert (TRAIN_CONFIGS / "quickstart.toml") in FILES


@each([file for file in FILES if file.name != "quickstart.toml"])
def test_every_gpu_run_can_be_planned(file):
    job = parse(["--job.config_file", str(file)])
    result = plan(job, GPUS.get(file.name, 8))
    assert result.tokens_per_step == job.training.global_batch_size * job.training.seq_len
    assert sum(stage.steps for stage in result.stages) == job.training.steps
    assert result.hours > 0 and (result.speedup > 1) == job.lighthouse.enable


@each(FILES)
def test_every_run_has_a_folder_of_its_own(file):
    job = parse(["--job.config_file", str(file)])
    assert job.job.dump_folder == f"outputs/{file.relative_to(TRAIN_CONFIGS).with_suffix('')}"


@each(sorted((TRAIN_CONFIGS / "paper").glob("L*.toml")))
def test_a_name_says_what_is_in_the_file(file):
    section = parse(["--job.config_file", str(file)]).lighthouse
    parts = (section.num_levels, section.pooling_factor, section.topk, section.scorer)
    assert file.stem == "L{}_p{}_k{}_{}".format(*parts)


def test_the_table_has_every_file_and_no_other():
    table = (TRAIN_CONFIGS / "README.md").read_text()
    named = set(re.findall(r"`((?:paper/)?\w+\.toml)`", table)) - {"config.toml"}
    assert named == {str(file.relative_to(TRAIN_CONFIGS)) for file in FILES}


@each(FILES)
def test_builds_with_the_layers_it_promises(file):
    job, model = build("--job.config_file", str(file))
    section, ranks = job.lighthouse, job.parallelism.context_parallel_degree
    layers = lighthouse_layers(model)
    expected = set(range(len(model.layers))) - set(section.dense_layers)
    assert set(layers) == (expected if section.enable else set())
    for module in layers.values():
        length = job.training.seq_len // ranks
        assert module.config.gathered_len(length) < length
        if not section.layer_overrides:
            assert module.config.topk == section.topk // ranks
            assert module.config.scorer == section.scorer


def test_530M_is_the_size_of_the_paper():
    _, model = build("--model.flavor", "530M", "--training.seq_len", "98304")
    count = sum(p.numel() for p in model.parameters())
    # Per layer: four 1024 x 1024 projections, three 1024 x 1536 ones, two norms.
    layer = 4 * 1024 * 1024 + 3 * 1024 * 1536 + 2 * 1024
    assert count == 30 * layer + 2 * 128256 * 1024 + 1024
    assert round(count / 1e6) == 530
    block = model.layers["0"]
    assert block.feed_forward.w1.out_features == 1536
    assert block.attention.head_dim == 128 and block.attention.n_heads == 8
    assert len(model.layers) == 30


def test_530M_byte_has_the_same_body():
    _, words = build("--model.flavor", "530M")
    _, model = build("--model.flavor", "530M_byte", "--model.tokenizer", "byte")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["tok_embeddings.weight"] == shapes["output.weight"] == (264, 1024)
    body = {name: tuple(p.shape) for name, p in words.named_parameters() if "layers" in name}
    assert body == {name: shape for name, shape in shapes.items() if "layers" in name}


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
    for step, active in ((4, 3), (5, 0), (9, 0), (1, 3)):
        set_stage([model], job.lighthouse, step)
        assert stage_metrics([model]) == {"lighthouse/active_layers": active}
    job.lighthouse.dense_from_step = None
    set_stage([model], job.lighthouse, 10**6)
    assert stage_metrics([model]) == {"lighthouse/active_layers": 3}


def test_a_dense_model_has_no_stage_metrics():
    _, model = build("--model.flavor", "tiny_byte")
    assert stage_metrics([model]) == {}
