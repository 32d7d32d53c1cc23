import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torchtitan.config import ConfigManager
from torchtitan.models.llama3 import Transformer, TransformerModelArgs, llama3_args

from lighthouse.titan.checkpoint.seal import SealingWriter
from lighthouse.titan.data.tokenizer import ByteTokenizer
from lighthouse.titan.export import Exported, export, main
from lighthouse.titan.llama3.model_args import model_args_of
from tests.support.tiers import tiers

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


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with steps 2 and 3."""
    folder = tmp_path / "run"
    for step in (2, 3):
        save(llama3_args["tiny_byte"], folder / "checkpoint" / f"step-{step}")
    (folder / "config.toml").write_text('[model]\nflavor = "tiny_byte"\ntokenizer = "byte"\n')
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *arguments: Path) -> str:
    with pytest.raises(SystemExit):
        main(list(map(str, arguments)))
    return capsys.readouterr().err


def test_a_checkpoint_that_is_a_link(run: Path, tmp_path: Path, capsys) -> None:
    """To another disk, which may be gone: the step before is then not what was asked for."""
    step = run / "checkpoint" / "step-3"
    (tmp_path / "latest").symlink_to(step)
    main([str(tmp_path / "latest"), str(tmp_path / "of_latest")])
    step.rename(tmp_path / "elsewhere")
    step.symlink_to(tmp_path / "elsewhere")
    for number, named in enumerate((run, step)):
        main([str(named), str(tmp_path / f"out{number}")])
    assert capsys.readouterr().out.count(": step 3, ") == 3
    (tmp_path / "elsewhere").rename(tmp_path / "gone")
    said = refusal(capsys, run, tmp_path / "out")
    assert said.startswith(f"refused: {step} is a link to nothing that is there: ")
    main([str(run), str(tmp_path / "out"), "--step", "2"])


@pytest.mark.parametrize("name", ["config.json", "begun_with.json", "generation_config.json"])
@pytest.mark.parametrize("text", tiers(["", "[1]", "[" * 9999], ""))
def test_what_a_run_began_with_is_damaged(run: Path, tmp_path: Path, capsys, name, text) -> None:
    (run / "assets").mkdir()
    (run / "assets" / "config.json").write_text("{}")
    (run / "assets" / name).write_text(text)
    said = refusal(capsys, run, tmp_path / "out")
    assert said.startswith(f"refused: {run / 'assets' / name} is damaged")


def test_a_checkpoint_beside_the_runs_own(run: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(run / "checkpoint", run / "aside")
    said = refusal(capsys, run / "aside" / "step-3", tmp_path / "out")
    assert f"{run / 'aside' / 'step-3'} is not among the run's checkpoints" in said


def test_an_output_that_is_a_link(run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert "out is a link to nothing that is there" in refusal(capsys, run, tmp_path / "out")
    (tmp_path / "disk").mkdir()
    main([str(run), str(tmp_path / "out")])
    assert (tmp_path / "disk" / "config.json").is_file()


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
    export(Exported(tmp_path / "step-3", args, "byte"), tmp_path / "out")

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
    assert tokenizer("hé")["input_ids"] == ByteTokenizer().encode("hé", add_bos=True)


def test_bfloat16_and_no_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    args = small()
    model = save(args, tmp_path / "step-3")
    export(Exported(tmp_path / "step-3", args, dtype="bfloat16"), tmp_path / "out")
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


def test_files_of_a_size_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    model = save(small(), tmp_path / "step-3")
    monkeypatch.setattr("lighthouse.titan.export.FILE_BYTES", 100_000)
    export(Exported(tmp_path / "step-3", small()), tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [file.name for file in files][:2] == [
        f"model-0000{n}-of-{len(files):05}.safetensors" for n in (1, 2)
    ]
    ordinary = (tmp_path / "out" / "config.json").stat().st_mode
    for file in files:
        assert file.stat().st_size < 105_000 and file.stat().st_mode == ordinary
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(theirs.lm_head.weight, model.output.weight)
    assert torch.equal(theirs.model.embed_tokens.weight, model.tok_embeddings.weight)


def test_a_layer_is_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(small(), tmp_path / "step-3")
    read = []
    load = dcp.load
    monkeypatch.setattr(dcp, "load", lambda state, **kw: (read.append([*state]), load(state, **kw)))
    export(Exported(tmp_path / "step-3", small()), tmp_path / "out")
    assert [len(names) for names in read] == [1, 9, 9, 1, 1]


def test_what_is_no_number_is_exported_on_request(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(llama3_args, "small", small())
    model = Transformer(small())
    with torch.no_grad():
        model.init_weights()
        model.layers["1"].feed_forward.w2.weight[3, 3] = torch.nan
    dcp.save(model.state_dict(), checkpoint_id=tmp_path / "step-3", no_dist=True)
    command = [str(tmp_path / "step-3"), str(tmp_path / "out"), "--flavor", "small"]
    command += ["--tokenizer", "none"]
    with pytest.raises(SystemExit):
        main(command)
    said = f"checkpoint {tmp_path / 'step-3'} has values in model.layers.1.mlp.down_proj.weight "
    said += "that are no finite numbers in float32"
    refused = capsys.readouterr().err
    assert refused.startswith(f"refused: {said}: ") and "with --accept-nonfinite\n" in refused
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]
    main([*command, "--accept-nonfinite"])
    assert capsys.readouterr().err.startswith(f"warning: {said}; ")
    (written,) = (tmp_path / "out").glob("*.safetensors")
    weight = load_file(written)["model.layers.1.mlp.down_proj.weight"]
    assert weight.isnan().nonzero().tolist() == [[3, 3]]


def _unfinished(folder: Path) -> dict:
    (folder / "step-3" / ".metadata").unlink()
    return {}


def _weights_alone(folder: Path) -> dict:
    (folder / "step-3" / "model.safetensors.index.json").touch()
    return _unfinished(folder)


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
        (_weights_alone, "step-3 has weights in Hugging Face's format alone, .* an earlier step"),
        (_missing, "step-4 is not a folder"),
        (_used_output, "out is there already"),
        (lambda _: {"model_args": small(n_layers=3)}, "has no layers.2.attention.wq.weight"),
        (lambda _: {"model_args": small(n_layers=1)}, "and 8 more weights that the flavor lacks"),
        (lambda _: {"model_args": small(dim=32)}, r"as \(264, 64\), the flavor as \(264, 32\)"),
        (lambda _: {"tokenizer": "nowhere"}, "tokenizer 'nowhere': .*does not exist"),
        (
            lambda _: {"model_args": small(vocab_size=260), "tokenizer": "byte"},
            "has 264 tokens, the model's vocabulary only 260",
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
    output = arguments.pop("output")
    with pytest.raises(ValueError, match=message):
        export(Exported(**arguments), output)
    left = [path.name for path in tmp_path.iterdir() if path.name not in ("step-3", "out")]
    assert not (output / "config.json").exists() and not left


@pytest.mark.parametrize("name", ["/nowhere", "nowhere"])
def test_a_run_that_is_not_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "out"])
    assert capsys.readouterr().err.startswith(f"refused: {name} is no folder of a run")


def test_a_healthy_export_says_what_it_has_written_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    model, folder = Transformer(small()), tmp_path / "step-3"
    dcp.save(model.state_dict(), storage_writer=SealingWriter(folder), no_dist=True)
    recwarn.clear()
    export(Exported(tmp_path / "step-3", small()), tmp_path / "out")
    assert not recwarn.list
    assert capsys.readouterr().err == ""


def test_unknown_flavor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(tmp_path / "out"), "--flavor", "9B"])
    assert "--flavor '9B': must be one of" in capsys.readouterr().err
