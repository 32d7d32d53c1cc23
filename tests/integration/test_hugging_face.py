"""From a folder in Hugging Face's format, by real runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torchtitan.config import ConfigManager

from lighthouse.titan.data.loaders import build_dataloader
from lighthouse.titan.data.tokenizer import ByteTokenizer
from lighthouse.titan.llama3.safetensors_header import INDEX_FILE
from tests.support.llamas import YARN, save_llama
from tests.support.processes import run_module
from tests.support.tiers import tiers
from tests.support.trainer import TINY, Options, flags, train

SEQ_LEN = 128
BF16 = torch.bfloat16


def from_folder(folder: Path) -> Options:
    return TINY | {
        "model.flavor": "hf",
        "model.hf_assets_path": folder,
        "checkpoint.enable": True,
        "checkpoint.initial_load_in_hf": True,
        "training.seq_len": SEQ_LEN,
        "training.local_batch_size": 1,
        "training.steps": 1,
    }


@pytest.mark.parametrize("chunk", tiers([0, 50], 50))
def test_sharded_step_one_is_that_of_transformers(tmp_path: Path, chunk: int) -> None:
    """Weights in two shards each, of which one is applied twice, and fewer heads than ranks."""
    change = {"tie_word_embeddings": True, "num_key_value_heads": 1, "rope_scaling": YARN}
    theirs = save_llama(tmp_path / "hf", change)
    options = from_folder(tmp_path / "hf") | {
        "training.loss_chunk_tokens": chunk,
        "model.args.rope_theta": 2e4,
    }
    run = train(tmp_path / "run", base=options, processes=2)

    job = ConfigManager(checked=False).parse_args(flags(options))
    loaders = [build_dataloader(2, rank, ByteTokenizer(), job) for rank in range(2)]
    batches = [next(iter(loader)) for loader in loaders]
    inputs = torch.cat([tokens["input"] for tokens, _ in batches])
    theirs.model.rotary_emb.inv_freq = _frequencies(theirs, 2e4)
    labels = torch.cat([labels for _, labels in batches])
    loss = F.cross_entropy(theirs(inputs).logits.flatten(0, 1), labels.flatten())
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in theirs.parameters()])
    assert run.losses()[1] == pytest.approx((loss.item(), norm.item()), rel=1e-5)
    assert "model.args.rope_theta = 20000.0, on purpose: config.json has 10000.0" in run.output


def _frequencies(model, theta: float) -> torch.Tensor:
    """transformers' rotary frequencies under another base."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    model.config.rope_parameters["rope_theta"] = theta
    return ROPE_INIT_FUNCTIONS["yarn"](model.config, "cpu")[0]


def test_there_and_back_is_an_identity(tmp_path: Path) -> None:
    """A run that changes no weight, in two stages; the folder that it began with is gone after."""
    transformers = pytest.importorskip("transformers")
    hf, run, out = (tmp_path / name for name in ("hf", "run", "out"))
    theirs = save_llama(
        hf, {"num_key_value_heads": 2, "rope_scaling": YARN | {"attention_factor": 1.5}}, BF16
    )
    generation = {"eos_token_id": [257, 9], "temperature": 0.6}
    (hf / "generation_config.json").write_text(json.dumps(generation))
    ByteTokenizer().save_pretrained(hf)
    (hf / "chat_template.jinja").write_text("{{ messages }}")
    stages = (
        '[[stages]]\nsteps = 1\nattention = "lighthouse"\nseq_len = 64\n'
        '[[stages]]\nsteps = 1\nattention = "dense"\nseq_len = 128\n'
    )
    (tmp_path / "job.toml").write_text(stages)
    of_the_stages = ("training.steps", "training.seq_len")
    options = {key: value for key, value in from_folder(hf).items() if key not in of_the_stages} | {
        "job.config_file": tmp_path / "job.toml",
        "model.tokenizer": "hf",
        "training.dataset": "local",
        "training.dataset_path": write_text(tmp_path / "text"),
        "optimizer.lr": 1e-30,
        "checkpoint.interval": 1,
        "lighthouse.enable": True,
        "lighthouse.topk": 4,
        "lighthouse.stratum": 4,
        "lighthouse.num_levels": 2,
    }
    trained = train(run, base=options)
    before = {path.name: path.read_bytes() for path in hf.iterdir() if path.is_file()}
    shutil.rmtree(hf)

    early = export_run(run, tmp_path / "early", "--step", "1")
    assert "warning: step 1 is of a lighthouse stage" in early
    assert read(tmp_path / "early" / "config.json")["max_position_embeddings"] == 64
    assert "warning" not in export_run(run, out)

    weights = {}
    for file in out.glob("*.safetensors"):
        weights |= load_file(file)
    assert weights.keys() == theirs.state_dict().keys()
    for name, weight in theirs.state_dict().items():
        assert weights[name].dtype == BF16 and torch.equal(weights[name].float(), weight)
    ours = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokens = torch.randint(0, 264, (1, 128))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=0, atol=1e-5)
    was, now = json.loads(before["config.json"]), read(out / "config.json")
    assert now["rope_scaling"] == YARN | {
        **{"attention_factor": 1.5, "beta_fast": 32.0, "beta_slow": 1.0},
    }
    kept = was.keys() - {"rope_scaling", "dtype", "mlp_bias", "attention_bias"}
    assert {key: now[key] for key in kept} == {key: was[key] for key in kept}
    assert read(out / "generation_config.json").items() >= generation.items()
    assert (out / "chat_template.jinja").read_bytes() == before["chat_template.jinja"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer("hi")["input_ids"] == [256, 104, 105]
    assert trained.losses()[1][0] > 0


def export_run(*arguments: object) -> str:
    code, output = run_module("lighthouse.titan.export", *map(str, arguments))
    assert code == 0, output
    return output


def write_text(folder: Path) -> Path:
    folder.mkdir()
    lines = [json.dumps({"text": f"line {i} " * 9}) for i in range(99)]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return folder


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def test_an_index_of_another_model_is_not_followed(tmp_path: Path) -> None:
    """A folder may be named for its tokenizer alone; the index lacks what was trained."""
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    options = TINY | {
        "model.hf_assets_path": tmp_path,
        "checkpoint.enable": True,
        "checkpoint.last_save_in_hf": True,
        "checkpoint.last_save_model_only": True,
        "training.steps": 1,
    }
    run = train(tmp_path / "run", base=options)
    files = [file.name for file in run.checkpoint(1).glob("*.safetensors")]
    assert files == ["model-00001-of-00001.safetensors"]
