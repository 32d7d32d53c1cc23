"""From a folder in Hugging Face's format, by real runs."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torchtitan.config import ConfigManager

from lighthouse.titan.data.loaders import build_dataloader
from lighthouse.titan.data.tokenizer import ByteTokenizer
from tests.support.llamas import YARN, save_llama
from tests.support.trainer import TINY, Options, flags, train

SEQ_LEN = 128


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


@pytest.mark.parametrize("chunk", [0, 50])
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
