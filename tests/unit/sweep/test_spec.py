"""Sweep files: points, and what is refused before anything runs."""

from pathlib import Path

import pytest

from lighthouse.sweep.run_folder import run_names
from lighthouse.sweep.spec import Spec, read_spec


@pytest.fixture
def read(tmp_path):
    (tmp_path / "base.toml").touch()

    def read(text: str) -> Spec:
        file = tmp_path / "grid.toml"
        file.write_text('base = "base.toml"\n' * ("base =" not in text) + text)
        return read_spec(file)

    return read


def test_points_are_the_product_of_the_axes_then_the_explicit_ones_with_each_seed(read):
    spec = read(
        """
        seeds = [1, 2]
        [overrides]
        training.steps = 7
        [axes]
        lighthouse.topk = [16, 32]
        "lighthouse.scorer" = ["norm", "dilated"]
        [[points]]
        lighthouse.enable = false
        [[exclude]]
        lighthouse = {topk = 32, scorer = "dilated"}
        """
    )
    names = run_names(spec.points)
    assert names == [
        *("topk=16,scorer=norm,seed=1", "topk=16,scorer=norm,seed=2"),
        *("topk=16,scorer=dilated,seed=1", "topk=16,scorer=dilated,seed=2"),
        *("topk=32,scorer=norm,seed=1", "topk=32,scorer=norm,seed=2"),
        *("lighthouse.enable=false,seed=1", "lighthouse.enable=false,seed=2"),
    ]
    assert spec.points[0] == {
        "lighthouse.topk": 16,
        "lighthouse.scorer": "norm",
        "debug.seed": 1,
    }
    assert spec.overrides == {"training.steps": 7}
    assert spec.name == "grid" and spec.output == Path("outputs/sweeps/grid").absolute()


def test_without_axes_there_is_the_base_or_the_explicit_points_alone(read):
    assert read("").points == ({},)
    assert run_names(({},)) == ["base"]
    assert read("[[points]]\ntraining.steps = 3").points == ({"training.steps": 3},)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "no.toml"', "base = 'no.toml': there is no file"),
        ('base = ""', "base is not set; name the TOML"),
        ("seeds = []", "seeds = []: must be at least one"),
        ("seeds = [1, 2, 1]", "seeds = [1, 2, 1]: 1 stands there twice"),
        ("[axes]\na.b = [1e-3, 0.001]", "axes.a.b = [0.001, 0.001]: 0.001 stands there twice"),
        ("axis = 1", "axis: there is no such key; did you mean axes?"),
        ("[resources]\ngpus = 1", "resources.gpus: there is no such key"),
        ("[axes]\nlighthouse.topk = 16", "axes.lighthouse.topk = 16: must be a list"),
        ("[axes]\nlighthouse.topk = []", "must be a list of values, at least one"),
        ("[axes]\ntopk = [1]", "axes.topk: must be SECTION.KEY"),
        ("[overrides]\njob.dump_folder = 'x'", "job.dump_folder: is set by the sweep itself"),
        ("[overrides]\njob.extends.x = 1", "job.extends.x: is set by the sweep itself"),
        ("[overrides]\na.b = 1\n[axes]\na.b = [1]", "overrides.a.b: is one of the axes too"),
        ("seeds = [1]\n[axes]\ndebug.seed = [2]", "seeds = [1]: debug.seed is set elsewhere"),
        ("[axes]\na.b = [1]\n[[exclude]]\na.b = 2", "exclude: no combination of the axes has"),
        ("[axes]\na.b = [1]\n[[exclude]]\na.b = 1", "exclude: leaves no point"),
        ("seeds = ['1']", "seeds = ['1']: must be"),
        ("name = 'a b'", "name = 'a b': must be letters"),
        ("name = 'a;rm'", "name = 'a;rm'"),
        ('output = "a\\"b"', "does not work in a path for Slurm"),
        ('output = "a\\nb"', "does not work in a path for Slurm"),
        ("[resources]\nnodes = 0", "resources.nodes = 0: must be at least 1"),
        ("[resources]\ntime = '1h'", "resources.time = '1h': must be"),
        ("[resources]\npartition = 'a b'", "resources.partition = 'a b'"),
        ("[resources]\nqos = '$(id)'", "resources.qos = '$(id)'"),
        ('[resources]\naccount = "a\'"', "resources.account"),
        ("[resources]\nsbatch = ['a']", "resources.sbatch = 'a': must be one option"),
        ('[resources]\nsbatch = ["--x\\nid"]', "resources.sbatch"),
        ('[resources]\nsbatch = ["--comment=\'a"]', "resources.sbatch"),
        *(
            (
                f"[resources]\nsbatch = ['{option}']",
                f"sbatch = '{option}': is set by the sweep; {way}",
            )
            for option, way in (
                ("--job-name=mine", "leave it out"),
                ("-J mine", "leave it out"),
                ("--exclusive --requeue", "leave it out"),
                ("--no-requeue", "leave it out"),
                ("--open-mode truncate", "leave it out"),
                ("-o=x", "leave it out"),
                ("-a0-9", "use resources.max_running"),
                ("-N2", "use resources.nodes"),
                ("--ntasks-per-node=1", "use resources.gpus_per_node"),
                ("-n 4", "use resources.gpus_per_node"),
                ("-t5", "use resources.time"),
                ("--signal=TERM", "use resources.notice_seconds"),
            )
        ),
        ("[resources]\npython = []", "resources.python = []"),
        ("[resources]\nsetup = ['export WANDB_API_KEY=0123']", "resources.setup: looks like a sec"),
        (
            "[overrides]\na.b = 'hf_abcdefghijklmnopqrstuvwxyz'",
            "overrides.a.b: looks like a secret",
        ),
        ("[overrides]\na.api_key = 'x'", "overrides.a.api_key: looks like a secret"),
        ("[overrides]\na.b = 'https://me:word@host/x'", "overrides.a.b: looks like a secret"),
        ('output = "base.toml/x"', "base.toml is a file, and must be a folder"),
        ("[axes", "is not TOML"),
    ],
)
def test_what_cannot_be_is_refused_by_name(read, text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as raised:
        read(text)
    assert message in str(raised.value)


def test_a_runs_configuration_is_no_sweep_file():
    with pytest.raises(ValueError, match=r"tiny\.toml is a run's configuration, .* as base in"):
        read_spec(Path("train_configs/tiny.toml"))


def test_bytes_are_no_sweep_file(tmp_path):
    (tmp_path / "s.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"s\.toml is not TOML: "):
        read_spec(tmp_path / "s.toml")


def test_a_folder_is_no_sweep_file(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder; give the sweep file"):
        read_spec(tmp_path)


def test_an_output_folder_has_one_path_however_it_is_written(read, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for spelling in ("real", "link", "link/../real", "missing/../real"):
        assert read(f'output = "{tmp_path}/{spelling}/o"').output == tmp_path / "real" / "o"


def test_keys_may_be_deeper_than_a_section(read):
    spec = read("[axes]\ntraining.dataloader.num_workers = [0, 2]")
    assert run_names(spec.points) == ["num_workers=0", "num_workers=2"]


def test_a_secret_is_not_repeated(read):
    with pytest.raises(ValueError) as raised:
        read("[resources]\nsetup = ['export WANDB_API_KEY=0123']")
    assert "0123" not in str(raised.value)


def test_what_only_resembles_a_secret_is_not_refused(read):
    read(
        """
        [overrides]
        model.tokenizer = "byte"
        training.loss_chunk_tokens = 8
        model.hf_assets_path = "assets/hf_tokenizers/x"
        [resources]
        setup = ['export HF_TOKEN="$TOKEN_OF_THE_TEAM"', "module load cuda"]
        """
    )
