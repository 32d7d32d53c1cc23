"""The sweep files in train_configs/sweeps, and what the trainer makes of a sweep's points."""

import re
import tomllib
from dataclasses import replace

import pytest
import tomli_w

from lighthouse.sweep.resolve import resolve
from lighthouse.sweep.run_folder import write_run
from lighthouse.sweep.spec import read_spec
from tests.support import ROOT, TRAIN_CONFIGS

SWEEPS = TRAIN_CONFIGS / "sweeps"
RUNS = {
    "tiny": 4,
    "paper_topk": 5,
    "paper_pooling": 3,
    "paper_levels": 6,
    "paper_scorers": 5,
    "paper_splits": 4,
    "paper_context_parallel": 3,
}


def test_all_sweep_files_are_known():
    assert {file.stem for file in SWEEPS.glob("*.toml")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_all_points_are_valid(name):
    planned = resolve(read_spec(SWEEPS / f"{name}.toml"), None)
    assert len(planned) == RUNS[name]
    for plan in planned:
        config = tomllib.loads(plan.config_toml)
        assert config["job"]["dump_folder"] == str(plan.run.folder)
        assert plan.run.steps == config["training"]["steps"]
        for key, value in plan.run.overrides.items():
            section, _, name = key.partition(".")
            assert config[section][name] == value


def test_the_paper_has_each_run_once():
    names = [name for name in RUNS if name.startswith("paper")]
    planned = [p.run for n in names for p in resolve(read_spec(SWEEPS / f"{n}.toml"), None)]
    # k=1536 is in three grids, k=2048 and k=6144 in two, p=4 k=1536 dilated in two.
    assert len(planned) == 26 and len({run.identity for run in planned}) == 21


def test_the_examples_in_the_documentation_are_valid(tmp_path):
    texts = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *TRAIN_CONFIGS.rglob("*.md")]
    examples = [
        example
        for text in texts
        for example in re.findall(r"```toml\n(base = .*?)```", text.read_text(), re.DOTALL)
    ]
    for example in examples:
        file = tmp_path / "example.toml"
        file.write_text(example.replace('"../', f'"{TRAIN_CONFIGS}/'))
        assert resolve(read_spec(file), None)


def sweep(tmp_path, text):
    file = tmp_path / "sweep.toml"
    file.write_text(f'base = "{TRAIN_CONFIGS}/tiny.toml"\n{text}')
    return read_spec(file)


def test_the_identity_is_of_what_is_trained_and_of_the_number_of_processes(tmp_path):
    cpu = "[resources]\ngpus_per_node = 0\n"

    def identity(text):
        (planned,) = resolve(sweep(tmp_path, text), None)
        return planned.run.identity

    first = identity(cpu)
    assert first == identity('name = "other"\noutput = "elsewhere"\n' + cpu)
    assert first == identity("[overrides]\nlighthouse.topk = 32\n" + cpu)
    assert first == identity('[overrides]\njob.description = "other"\n' + cpu)
    assert first == identity("[overrides]\nmetrics.log_freq = 7\ncheckpoint.interval = 9\n" + cpu)
    assert first != identity("[overrides]\nlighthouse.topk = 16\n" + cpu)
    assert first != identity("[resources]\ngpus_per_node = 2\n")


def test_a_folder_of_the_first_version_is_found_by_its_configuration(tmp_path):
    """One whose configuration lacks what came later, and has an identity of every default."""
    text = f'output = "{tmp_path}/out"\n[resources]\ngpus_per_node = 0\n'
    spec = sweep(tmp_path, text)
    (planned,) = resolve(spec, None)
    assert planned.run.folder.name == f"base@{planned.run.identity}"
    old = replace(planned.run, folder=tmp_path / "out" / "base@0123abcd", identity="0123abcd")
    lines = planned.config_toml.splitlines(keepends=True)
    config = "".join(
        line for line in lines if not line.startswith(("selection =", "validate_leak"))
    )
    write_run(replace(old, version=1), config, b"")
    assert resolve(spec, None)[0].run.folder == old.folder

    def folder(overrides):
        (other,) = resolve(sweep(tmp_path, f"{text}[overrides]\n{overrides}"), None)
        return other.run.folder

    # What it did without saying so, said; and what it did not do.
    assert folder('lighthouse.selection = "published"') == old.folder
    assert folder('lighthouse.selection = "causal"') != old.folder
    assert folder("lighthouse.topk = 16") != old.folder
    write_run(replace(old, version=1, processes=2), config, b"")
    assert resolve(spec, None)[0].run.folder != old.folder


def test_all_invalid_points_are_named(tmp_path):
    spec = sweep(
        tmp_path,
        """
        [axes]
        lighthouse.topk = [32, 33, "many"]
        [[points]]
        lighthouse.top = 1
        [[points]]
        checkpoint.enable = false
        [resources]
        gpus_per_node = 0
        """,
    )
    with pytest.raises(ValueError) as raised:
        resolve(spec, None)
    message = str(raised.value)
    assert "4 of 5 runs can't be" in message
    assert "topk=33: lighthouse.topk = 33" in message
    assert "topk=many: lighthouse.topk = 'many': must be int" in message
    assert re.search(r"\n  top=1: .*\btop\b", message)
    assert "checkpoint.enable=false: checkpoint.enable = false" in message


def test_deeper_keys_reach_the_trainer(tmp_path):
    text = "[axes]\ntraining.dataloader.num_workers = [0, 2]\n[resources]\ngpus_per_node = 0\n"
    configs = [tomllib.loads(p.config_toml) for p in resolve(sweep(tmp_path, text), None)]
    assert [c["training"]["dataloader"]["num_workers"] for c in configs] == [0, 2]
    with pytest.raises(ValueError, match=r"training\.dataloader = 1: .*num_workers is set too"):
        resolve(sweep(tmp_path, "[overrides]\ntraining.dataloader = 1\n" + text), None)


@pytest.mark.parametrize("key", ["experimental.custom_import", "job.custom_config_module"])
def test_a_missing_module_is_named(tmp_path, key):
    text = f"[[points]]\n{key} = 'nope'\n[resources]\ngpus_per_node = 0\n"
    with pytest.raises(ValueError, match=f"(?s)nope.*{key}|{key}.*nope"):
        resolve(sweep(tmp_path, text), None)


def test_degrees_must_suit_the_resources(tmp_path):
    spec = sweep(
        tmp_path,
        "[overrides]\nparallelism.tensor_parallel_degree = 2\n[resources]\ngpus_per_node = 3\n",
    )
    with pytest.raises(
        ValueError, match="tensor_parallel_degree = 2: the number of processes, 3, "
    ):
        resolve(spec, None)


FILES, SHUFFLED = "training.dataset_order = 'files'\n", "training.dataset_order = 'shuffled'\n"
ONE_ORDER = f"{SHUFFLED}training.dataset_seed = 5\n"


@pytest.fixture
def seeds(tmp_path):
    """Plans a sweep with seeds over local text."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("some text " * 99)

    def planned(top, overrides, more=""):
        local = f"training.dataset = 'local'\ntraining.dataset_path = '{tmp_path / 'text'}'\n"
        output = "" if "output" in top else f"output = '{tmp_path / 'runs'}'\n"
        cpu = "[resources]\ngpus_per_node = 0\n"
        text = f"{output}{top}\n[overrides]\n{local}{overrides}\n{more}\n{cpu}"
        return resolve(sweep(tmp_path, text), None)

    return planned


def orders(planned):
    """The seed of each run, and that of its text."""
    configs = [tomllib.loads(plan.config_toml) for plan in planned]
    return [(c["debug"]["seed"], c["training"]["dataset_seed"]) for c in configs]


@pytest.mark.parametrize(
    ("weights", "some", "order", "same"),
    [
        (True, [1, 2], FILES, "training.dataset_order = 'files'"),
        (True, [1, 2], ONE_ORDER, "training.dataset_seed = 5"),
        (True, [1, 2], SHUFFLED, None),
        (True, [1], FILES, None),
        (False, [1, 2], FILES, None),
    ],
)
def test_seeds_that_decide_nothing_are_noted(tmp_path, seeds, weights, some, order, same):
    (tmp_path / "step-9").mkdir()
    (tmp_path / "step-9" / ".metadata").touch()
    begun = f"checkpoint.initial_load_path = '{tmp_path / 'step-9'}'\n" if weights else ""
    for plan in seeds(f"seeds = {some}", begun + order):
        remark = (
            f"debug.seed = {some}: checkpoint.initial_load_path gives each the same weights, and "
            f"{same} the same text, so they differ by rounding alone"
        )
        said = [line for line in plan.plan.remarks if line.startswith("debug.seed")]
        assert said == ([remark] if same else [])


def test_seeds_are_of_shuffled_text_too(seeds):
    """The same at each point, so that what is compared seed by seed reads the same text."""
    topk = "[axes]\nlighthouse.topk = [16, 32]"
    shuffled = seeds("seeds = [0, 1, 2]", SHUFFLED, topk)
    assert orders(shuffled) == [(0, 0), (1, 1), (2, 2)] * 2
    assert shuffled[1].run.name == "topk=16,seed=1"
    assert shuffled[1].run.overrides == {"lighthouse.topk": 16, "debug.seed": 1}
    assert orders(seeds("seeds = [1, 2]", FILES)) == [(1, 0), (2, 0)]
    # What the sweep says of the text itself holds.
    assert orders(seeds("seeds = [1, 2]", ONE_ORDER)) == [(1, 5), (2, 5)]
    assert orders(seeds("", SHUFFLED, "[axes]\ndebug.seed = [1, 2]")) == [(1, 0), (2, 0)]
    # And what runs go on with has their seeds.
    changed = seeds("seeds = [1, 2]", SHUFFLED, "[changes]\noptimizer.lr = 0.5")
    assert orders(changed) == [(1, 1), (2, 2)]
    assert [p.run.identity for p in changed] == [p.run.identity for p in shuffled[4:]]


@pytest.mark.parametrize("version", [1, 2])
def test_a_sweep_that_began_when_seeds_gave_text_no_order_goes_on_so(tmp_path, seeds, version):
    """All of it, so that its points stay comparable."""
    three = "seeds = [0, 1, 2]"
    mixed = "[axes]\ntraining.dataset_order = ['files', 'shuffled']"
    began = seeds(three, "training.dataset_seed = 0\n", mixed)
    assert began[-1].run.folder != seeds(three, "", mixed)[-1].run.folder
    newer = ("dataset_seed =", *(("selection =",) if version == 1 else ()))
    for number, plan in enumerate(began[:-1]):
        lines = plan.config_toml.splitlines(keepends=True)
        config = "".join(line for line in lines if not line.startswith(newer))
        run = plan.run
        if version == 1:
            run = replace(run, version=1, folder=tmp_path / "runs" / f"{number}@0123abcd")
        write_run(run, config, b"")
    again = seeds(three, "", mixed)
    folders = [plan.run.folder for plan in again]
    assert all(folder.exists() for folder in folders[:-1])
    assert folders[-1] == began[-1].run.folder
    assert orders(again) == [(0, 0), (1, 0), (2, 0)] * 2
    said = "training.dataset_seed: this sweep began when seeds gave text no order, and goes on so"
    assert all(plan.plan.remarks[-1].startswith(said) for plan in again)

    elsewhere = seeds(f"{three}\noutput = '{tmp_path / 'others'}'", "", mixed)
    assert orders(elsewhere) == [(0, 0), (1, 0), (2, 0), (0, 0), (1, 1), (2, 2)]


def test_a_sweep_that_began_with_orders_keeps_them(seeds):
    """Beside another one's runs in their order 0; a seed of 0 has that in any case."""
    for plan in seeds("seeds = [0]", SHUFFLED):
        write_run(plan.run, plan.config_toml, b"")
    with_orders = seeds("seeds = [0, 1, 2]", SHUFFLED)
    assert orders(with_orders) == [(0, 0), (1, 1), (2, 2)]
    write_run(with_orders[1].run, with_orders[1].config_toml, b"")
    for plan in seeds("seeds = [0, 1, 2]", f"{SHUFFLED}training.dataset_seed = 0\n"):
        write_run(plan.run, plan.config_toml, b"")
    again = seeds("seeds = [0, 1, 2]", SHUFFLED)
    assert [p.run.folder for p in again] == [p.run.folder for p in with_orders]
    assert orders(again) == orders(with_orders)


def test_points_that_are_the_same_run_are_refused(tmp_path):
    spec = sweep(
        tmp_path,
        """
        [axes]
        lighthouse.topk = [16]
        [[points]]
        lighthouse.topk = 16
        lighthouse.num_levels = 3
        [resources]
        gpus_per_node = 0
        """,
    )
    with pytest.raises(ValueError, match="num_levels=3: is the same run as base"):
        resolve(spec, None)


def test_values_reach_the_trainer_as_they_are(tmp_path):
    nasty = "a b'\"; $(touch x) `id` \\ \n100% é"
    overrides = tomli_w.dumps({"overrides": {"model": {"hf_assets_path": nasty}}})
    (plan,) = resolve(sweep(tmp_path, f"{overrides}[resources]\ngpus_per_node = 0\n"), None)
    assert tomllib.loads(plan.config_toml)["model"]["hf_assets_path"] == nasty


STAGES = """
[lr_scheduler]
warmup_steps = 2
[[stages]]
steps = 4
attention = "dense"
seq_len = 256
[[stages]]
steps = 6
attention = "lighthouse"
"""


def test_stages_are_axes(tmp_path):
    base = tmp_path / "base.toml"
    base.write_text(f'[job]\nextends = "{TRAIN_CONFIGS}/tiny.toml"\n{STAGES}')

    def planned(text):
        file = tmp_path / "sweep.toml"
        file.write_text(f'base = "base.toml"\n{text}\n[resources]\ngpus_per_node = 0\n')
        return resolve(read_spec(file), None)

    axes = "[axes]\nstages.1.steps = [4, 8]\nstages.2.dense_layers = [[0], [0, 1]]\n"
    runs = planned(f"[overrides]\nstages.1.seq_len = 128\n{axes}")
    configs = [tomllib.loads(run.config_toml) for run in runs]
    assert [c["stages"][0]["steps"] for c in configs] == [4, 4, 8, 8]
    assert [c["stages"][1]["dense_layers"] for c in configs] == [[0], [0, 1], [0], [0, 1]]
    assert {c["stages"][0]["seq_len"] for c in configs} == {128}
    assert [run.run.steps for run in runs] == [10, 10, 14, 14]
    assert [c["training"]["steps"] for c in configs] == [10, 10, 14, 14]
    assert len({run.run.identity for run in runs}) == 4
    assert runs[0].run.name == "steps=4,dense_layers=0"
    # What a stage says anew, and the same said in the file.
    (one,) = planned("[overrides]\nstages.1.steps = 4\n")
    (same,) = planned("")
    (rehearsed,) = planned("[overrides]\ntraining.rehearse_stages = true\n")
    assert one.run.identity == same.run.identity == rehearsed.run.identity
    # What a stage says that holds without it.
    anyway = "stages.1.lr_factor = 1.0\nstages.1.warmup_steps = 0\nstages.2.topk = 32\n"
    (anyway,) = planned(f"[overrides]\n{anyway}")
    (slower,) = planned("[overrides]\nstages.1.lr_factor = 0.5\n")
    assert anyway.run.identity == same.run.identity != slower.run.identity
    for key, message in (
        ("stages.3.steps = 4", r"stages\.3\.steps: there are stages 1 to 2"),
        ("stages.1.step = 4", r"stages\.1\.step: there is no such key"),
        ("training.steps = 4", r"training\.steps = 4: \[\[stages\]\] have 4 \+ 6 = 10 steps"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            planned(f"[overrides]\n{key}\n")
        assert "overlay.toml" not in str(error.value)


def test_changes_are_what_runs_go_on_with_and_no_part_of_what_they_are(tmp_path):
    text = "[resources]\ngpus_per_node = 0\n[axes]\nlighthouse.topk = [16, 32]\n"
    changes = (
        '[changes]\ncheckpoint.accept_changes = ["lr_scheduler"]\noptimizer.lr = 0.5\n'
        "training.steps = 177\n"
    )
    before, after = (resolve(sweep(tmp_path, t), None) for t in (text, text + changes))
    assert [p.run.folder for p in before] == [p.run.folder for p in after]
    assert not any(p.changed for p in before) and all(p.changed for p in after)
    for plan in after:
        config = tomllib.loads(plan.config_toml)
        assert config["optimizer"]["lr"] == 0.5 and plan.run.steps == 177
        assert config["checkpoint"]["accept_changes"] == ["lr_scheduler"]


def test_a_word_for_changes_makes_no_other_run(tmp_path):
    cpu = "[resources]\ngpus_per_node = 0\n"
    said = '[overrides]\ncheckpoint.accept_changes = ["data"]\n'
    (before,), (after,) = (resolve(sweep(tmp_path, text + cpu), None) for text in ("", said))
    assert before.run.folder == after.run.folder and after.changed
