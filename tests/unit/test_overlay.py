"""TOML files that extend others, and the resolved configuration that a run leaves behind."""

import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from lighthouse.titan.overlay import merge, read_layers
from lighthouse.titan.resolved import to_toml, write_resolved

TRAIN_CONFIGS = Path(__file__).parents[2] / "train_configs"


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def parse(*args: str):
    from torchtitan.config import ConfigManager

    return ConfigManager(this_machine=False).parse_args(list(args))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(
        tmp_path,
        "base.toml",
        '[model]\nname = "llama3"\nflavor = "tiny_byte"\ntokenizer = "byte"\n'
        "[training]\nsteps = 10\nseq_len = 256\n"
        "[lighthouse]\ndense_layers = [0, 1]\n",
    )


def test_tables_merge_and_the_rest_is_replaced(tmp_path, base):
    middle = write(
        tmp_path,
        "sub/middle.toml",
        '[job]\nextends = "../base.toml"\n[training]\nsteps = 20\nseq_len = 512\n',
    )
    top = write(
        tmp_path,
        "sub/deep/top.toml",
        '[job]\nextends = "../middle.toml"\ndescription = "top"\n'
        "[training]\nsteps = 30\n[lighthouse]\ndense_layers = [2]\n",
    )
    layers = read_layers(top)
    assert [file.resolve() for file, _ in layers] == [base, middle, top]
    assert merge(layers) == {
        "model": {"name": "llama3", "flavor": "tiny_byte", "tokenizer": "byte"},
        "training": {"steps": 30, "seq_len": 512},
        "lighthouse": {"dense_layers": [2]},
        "job": {"description": "top"},
    }
    job = parse("--job.config_file", str(top), "--training.steps", "40")
    assert (job.training.steps, job.training.seq_len) == (40, 512)
    assert not hasattr(job.job, "extends")


def test_merging_changes_none_of_the_layers(tmp_path, base):
    top = write(
        tmp_path, "top.toml", '[job]\nextends = "base.toml"\n[training]\nlocal_batch_size = 2\n'
    )
    layers = read_layers(top)
    assert merge(layers) == merge(layers)
    assert layers[0][1] == tomllib.loads(base.read_text())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "none.toml"', r"job\.extends = 'none\.toml': there is no file .*none\.toml"),
        ('extends = "."', r"there is no file"),
        ("extends = 3", r"job\.extends = 3: must be one path"),
        ('extends = "top.toml"', r"circle: .*top\.toml -> .*top\.toml"),
        ('extends = "back.toml"', r"circle: .*top\.toml -> .*back\.toml -> .*top\.toml"),
        ('extends = "broken.toml"', r"broken\.toml is not TOML: "),
    ],
)
def test_a_base_that_cannot_be_read_is_named(tmp_path, text, message):
    write(tmp_path, "back.toml", '[job]\nextends = "./top.toml"\n')
    write(tmp_path, "broken.toml", "[job\n")
    top = write(tmp_path, "top.toml", f"[job]\n{text}\n")
    with pytest.raises(ValueError, match=message):
        parse("--job.config_file", str(top))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("top_k = 4", r"lighthouse\.top_k: there is no such key; did you mean lighthouse\.topk\?"),
        ("topk = 4.0", r"lighthouse\.topk = 4\.0: must be int, got float"),
    ],
)
@pytest.mark.parametrize("wrong", ["base", "top"])
def test_a_wrong_key_or_value_names_its_file(tmp_path, line, message, wrong):
    lines = {"base": "", "top": "", wrong: f"[lighthouse]\n{line}\n"}
    write(tmp_path, "base.toml", lines["base"])
    top = write(tmp_path, "top.toml", f'[job]\nextends = "base.toml"\n{lines["top"]}')
    with pytest.raises(ValueError, match=rf"{message}.* \(in .*{wrong}\.toml\)$"):
        parse("--job.config_file", str(top))


def test_a_wrong_type_in_the_base_is_found_under_a_right_one(tmp_path):
    write(tmp_path, "base.toml", '[training]\nsteps = "many"\n')
    top = write(tmp_path, "top.toml", '[job]\nextends = "base.toml"\n[training]\nsteps = 3\n')
    with pytest.raises(ValueError, match=r"training\.steps = 'many'.*base\.toml"):
        parse("--job.config_file", str(top))


@pytest.mark.parametrize(
    "args",
    [
        ["--job.config_file", str(TRAIN_CONFIGS / "quickstart.toml"), "--training.steps", "150"],
        ["--job.config_file", str(TRAIN_CONFIGS / "paper" / "L4_p2_k2048_dilated.toml")],
        ["--optimizer.lr", "1e-3", "--lighthouse.layer_overrides", "2-3:topk=2048"],
        ["--parallelism.context_parallel_load_balancer", "None"],
    ],
)
def test_a_resolved_configuration_resolves_to_itself(tmp_path, args):
    first = parse(*args)
    text = to_toml(first)
    again = parse("--job.config_file", str(write(tmp_path, "config.toml", text)))
    assert to_toml(again) == text
    again.job.config_file = first.job.config_file
    assert again == first


def test_no_other_key_has_a_none_to_lose():
    """What TOML can't say must be the default, or have a word for it."""
    from torchtitan.config import JobConfig

    def lossy(config, path: str = "") -> list[str]:
        found = []
        for field in fields(config):
            value = getattr(config, field.name)
            if is_dataclass(value):
                found += lossy(value, f"{path}{field.name}.")
            elif "None" in str(field.type) and value is not None:
                found.append(f"{path}{field.name}")
        return found

    # An empty path of a pipeline schedule is as good as none.
    expected = ["context_parallel_load_balancer", "pipeline_parallel_schedule_csv"]
    assert sorted(lossy(JobConfig())) == [f"parallelism.{name}" for name in expected]


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_writes_the_file_into_the_runs_folder(tmp_path, monkeypatch, rank):
    monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
    job = parse("--job.dump_folder", str(tmp_path / "run"))
    write_resolved(job)
    files = list(tmp_path.rglob("*.*"))
    assert files == ([tmp_path / "run" / "config.toml"] if rank == 0 else [])
    if rank == 0:
        assert tomllib.loads(files[0].read_text()) == tomllib.loads(to_toml(job))
