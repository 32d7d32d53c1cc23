import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torchtitan.config import ConfigManager
from torchtitan.models.llama3 import Transformer, TransformerModelArgs, llama3_args

from lighthouse.titan.config.model_args import model_args_of
from lighthouse.titan.data.tokenizer import ByteTokenizer
from lighthouse.titan.export import export, main

SIZE = {"dim": 64, "n_layers": 2, "n_heads": 4, "multiple_of": 32, "vocab_size": 264}


def small(**changes: int) -> TransformerModelArgs:
    return TransformerModelArgs(**{**SIZE, "rope_theta": 500000, **changes}, max_seq_len=16384)


def save(args: TransformerModelArgs, folder: Path) -> Transformer:
    """A random model, saved as the trainer does: its weights among other state."""
    torch.manual_seed(0)
    model = Transformer(args)
    with torch.no_grad():
        model.init_weights()
    for name, weight in model.named_parameters():
        if "norm" in name:  # ones would hide a mix-up
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    state = {**model.state_dict(), "optimizer": {"state": torch.zeros(3)}, "train_state": {"n": 1}}
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return model


def test_sizes_and_tokenizer_come_from_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    file = run / "config.toml"
    run.mkdir()
    file.write_text(
        '[model]\nflavor = "tiny_byte"\ntokenizer = "byte"\n[training]\nseq_len = 512\n'
        "[model.args]\ndim = 64\nn_layers = 2\nn_kv_heads = 2\nffn_dim = 100\n"
        '[model.args.rope_scaling]\nrope_type = "none"\n'
    )
    args = model_args_of(ConfigManager(checked=False).parse_args(["--job.config_file", str(file)]))
    model = save(args, run / "checkpoint" / "step-3")
    main([str(run / "checkpoint" / "step-3"), str(tmp_path / "out")])

    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.randint(0, 264, (1, 300))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=1e-4, atol=1e-4)
    assert theirs.config.intermediate_size == 100
    assert theirs.config.max_position_embeddings == 512
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_checkpoint_in_no_run_needs_its_flavor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / "run" / "checkpoint" / "step-3"), str(tmp_path / "out")])
    assert "name the sizes with --flavor" in capsys.readouterr().err


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_same_logits_in_transformers(tmp_path: Path, kv_heads: int) -> None:
    transformers = pytest.importorskip("transformers")
    args = small(n_kv_heads=kv_heads)
    model = save(args, tmp_path / "step-3")
    export(tmp_path / "step-3", tmp_path / "out", args, tokenizer="byte")

    theirs, report = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="sdpa"
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert theirs.config.bos_token_id == 256 and theirs.config.eos_token_id == 257
    tokens = torch.randint(0, 264, (2, 300))
    with torch.no_grad():
        expected, got = model(tokens), theirs(tokens).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    # The rotary angles of upstream and transformers, scaled low frequencies included.
    angles = torch.angle(model.freqs_cis[1])
    torch.testing.assert_close(theirs.model.rotary_emb.inv_freq, angles, rtol=1e-5, atol=1e-9)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("hé")["input_ids"] == ByteTokenizer().encode("hé")


def test_bfloat16_and_no_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    args = small()
    model = save(args, tmp_path / "step-3")
    export(tmp_path / "step-3", tmp_path / "out", args, dtype="bfloat16")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(theirs.lm_head.weight, model.output.weight.bfloat16())
    assert theirs.config.bos_token_id is None
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_command_with_a_tokenizer_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(llama3_args, "small", small())
    save(small(), tmp_path / "step-3")
    ByteTokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "model.safetensors").write_text("not to be copied over")
    arguments = [str(tmp_path / "step-3"), str(tmp_path / "out"), "--flavor", "small"]
    main([*arguments, "--tokenizer", str(tmp_path / "tokenizer")])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["pad_token_id"]) == (256, None)
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 1000


def _unfinished(folder: Path) -> dict:
    (folder / "step-3" / ".metadata").unlink()
    return {}


def _missing(folder: Path) -> dict:
    return {"checkpoint": folder / "step-4"}


def _used_output(folder: Path) -> dict:
    (folder / "out").mkdir()
    (folder / "out" / "precious").touch()
    return {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_unfinished, "step-3 has no .metadata"),
        (_missing, "step-4 is not a folder"),
        (_used_output, "out is there already"),
        (lambda _: {"model_args": small(n_layers=3)}, "has no layers.2.attention.wq.weight"),
        (lambda _: {"model_args": small(n_layers=1)}, "and 8 more weights that the flavor lacks"),
        (lambda _: {"model_args": small(dim=32)}, r"as \(264, 64\), the flavor as \(264, 32\)"),
        (lambda _: {"tokenizer": "nowhere"}, "tokenizer 'nowhere': .*does not exist"),
        (
            lambda _: {"model_args": small(vocab_size=260), "tokenizer": "byte"},
            "has 264 tokens, the flavor's vocabulary only 260",
        ),
    ],
)
def test_refusals(tmp_path: Path, change: Callable[[Path], dict], message: str) -> None:
    save(small(), tmp_path / "step-3")
    arguments = {
        "checkpoint": tmp_path / "step-3",
        "output": tmp_path / "out",
        "model_args": small(),
    } | change(tmp_path)
    with pytest.raises(ValueError, match=message):
        export(**arguments)
    assert not (tmp_path / "out" / "config.json").exists()


def test_unknown_flavor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(tmp_path / "out"), "--flavor", "9B"])
    assert "--flavor '9B': expected one of" in capsys.readouterr().err
