"""Every TOML in train_configs/ parses and builds on the meta device with the layers it promises."""

import json

import pytest

from lighthouse.titan.data.tokenizer import ByteTokenizer
from lighthouse.titan.plan.job import machine_of, parse, plan
from tests.support import TRAIN_CONFIGS
from tests.support.models import lighthouse_layers, on_meta

FILES = sorted(f for f in TRAIN_CONFIGS.rglob("*.toml") if f.parent.name != "sweeps")
GPUS = {"cp8_1m_k4096.toml": 32}


LLAMA_3_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}


@pytest.fixture(autouse=True)
def assets(tmp_path, monkeypatch):
    """The folder that a file begins with is the user's: here, its description without weights."""
    folder = tmp_path / "assets" / "Llama-3-8B"
    folder.mkdir(parents=True)
    ByteTokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(LLAMA_3_8B))
    monkeypatch.chdir(tmp_path)


def job_of(file):
    flags = ["--job.config_file", str(file)]
    if file.name == "extend_hf.toml":
        flags.append("--checkpoint.no-initial_load_in_hf")
    return parse(flags, machine_of("h100", GPUS.get(file.name, 8)))


def each(files):
    return pytest.mark.parametrize("file", files, ids=lambda f: str(f.relative_to(TRAIN_CONFIGS)))


def test_there_are_train_configs():
    assert (TRAIN_CONFIGS / "quickstart.toml") in FILES


@each([file for file in FILES if file.name not in ("quickstart.toml", "tiny.toml")])
def test_every_gpu_run_can_be_planned(file):
    job = job_of(file)
    result = plan(job, GPUS.get(file.name, 8))
    assert result.tokens_per_step == job.training.global_batch_size * job.training.seq_len
    assert sum(stage.steps for stage in result.stages) == job.training.steps
    faster = job.lighthouse.enable or bool(job.stages)
    assert result.hours > 0 and (result.speedup > 1) == faster


@each(FILES)
def test_every_run_has_a_folder_of_its_own(file):
    job = job_of(file)
    assert job.job.dump_folder == f"outputs/{file.relative_to(TRAIN_CONFIGS).with_suffix('')}"


@each(FILES)
def test_builds_with_the_layers_it_promises(file):
    job = job_of(file)
    model = on_meta(job)
    section, ranks = job.lighthouse, job.parallelism.context_parallel_degree
    layers = lighthouse_layers(model)
    windows = any(table["attention"] == "window" for table in job.stages)  # in every layer
    expected = set(range(len(model.layers))) - (set() if windows else set(section.dense_layers))
    assert set(layers) == (expected if section.enable or windows else set())
    for module in layers.values():
        length = job.training.seq_len // ranks
        if windows:
            assert module.config.window < length
            continue
        assert module.config.gathered_len(length) < length
        if not section.layer_overrides:
            assert module.config.topk == section.topk // ranks
            assert module.config.scorer == section.scorer
