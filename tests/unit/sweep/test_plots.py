"""Curves of a sweep's runs."""

from dataclasses import replace

import pytest

from lighthouse.sweep.plots import _groups, _over, plot_sweep
from lighthouse.sweep.run_folder import PREEMPTED
from tests.support.sweeps import log_attempts, log_metrics, make_run


def test_plots(tmp_path):
    runs = [make_run(tmp_path, name) for name in ("a", "b", "not begun")]
    for run in runs[:2]:
        log_metrics(run)
        log_attempts(run, PREEMPTED)
    paths = plot_sweep(runs, tmp_path)
    assert [path.name for path in paths] == [
        *("loss_over_steps.png", "loss_over_tokens.png", "loss_over_gpu_hours.png"),
        "loss_against_cost.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    with pytest.raises(ValueError, match="no run has logged a step"):
        plot_sweep(runs[2:], tmp_path)


def test_what_metrics_lack_is_left_out_and_said(tmp_path, capsys):
    """As of an older trainer, or after the disk has changed them."""
    runs = [make_run(tmp_path, name) for name in ("a", "b")]
    for run in runs:
        log_metrics(run)
    file = runs[0].folder / "metrics.jsonl"
    lines = file.read_text().splitlines()
    for change, axes in (
        (lambda line: line.replace("tokens_seen", "tokens"), ["tokens"]),
        (lambda line: line.replace('"time"', '"moment"'), ["GPU-hours"]),
        (lambda line: line.replace('"loss": 3.0', '"loss": "inf"'), []),
        (lambda line: '{"step": 1, "loss": 1e308}', ["tokens", "GPU-hours"]),
    ):
        file.write_text("\n".join(map(change, lines)) + '\n{"step": 21, "lo')
        assert len(plot_sweep(runs, tmp_path)) == 4
        said = capsys.readouterr().err.splitlines()
        assert said == [
            f"note: over {axis} 1 of 2 curves are not drawn, or not all of them: metrics lack it"
            for axis in axes
        ]


def grid(tmp_path):
    runs = []
    for topk in (1, 2):
        for scorer in ("norm", "gla"):
            for seed in (1, 2):
                run = make_run(tmp_path, f"topk={topk},scorer={scorer},seed={seed}")
                point = {"lighthouse.topk": topk, "lighthouse.scorer": scorer, "debug.seed": seed}
                runs.append(replace(run, overrides=point))
                log_metrics(run, loss=lambda step, s=seed: float(s), steps=20 if seed == 1 else 12)
    return runs


def test_seeds_are_one_curve_and_axes_have_colors_and_dashes(tmp_path):
    groups = _groups(grid(tmp_path))
    assert [group.label for group in groups] == [
        *("topk=1,scorer=norm", "topk=1,scorer=gla", "topk=2,scorer=norm", "topk=2,scorer=gla")
    ]
    colors, looks = [g.color for g in groups], [g.look for g in groups]
    assert colors[0] == colors[1] != colors[2] == colors[3]
    assert looks[0] == looks[2] != looks[1] == looks[3]
    mean, lowest, highest = groups[0].mean()
    assert mean.x["steps"] == list(range(1, 13))  # that both have logged
    assert (set(mean.loss), set(lowest), set(highest)) == ({1.5}, {1.0}, {2.0})
    assert mean.x["tokens"] == [10 * step for step in range(1, 13)]


def test_seeds_of_the_text_are_seeds(tmp_path):
    runs = []
    for topk, seed in ((1, 0), (1, 1), (2, 0), (2, 1)):
        run = make_run(tmp_path, f"topk={topk},dataset_seed={seed}")
        point = {"lighthouse.topk": topk, "training.dataset_seed": seed}
        runs.append(replace(run, overrides=point))
        log_metrics(run)
    assert [(group.label, len(group.curves)) for group in _groups(runs)] == [
        *(("topk=1", 2), ("topk=2", 2))
    ]


def test_a_point_beside_the_axes_looks_like_none_of_them(tmp_path):
    runs = []
    for name, point in (
        ("topk=1", {"lighthouse.topk": 1}),
        ("topk=2", {"lighthouse.topk": 2}),
        ("topk=1,scorer=gla", {"lighthouse.topk": 1, "lighthouse.scorer": "gla"}),
    ):
        run = make_run(tmp_path, name)
        runs.append(replace(run, overrides=point))
        log_metrics(run)
    groups = _groups(runs)
    assert groups[0].color == groups[2].color != groups[1].color
    assert groups[0].look == groups[1].look != groups[2].look


def test_stages_and_validation_are_marked_and_what_one_seed_has_more_is_shown(tmp_path):
    _, axes = _over(_groups(grid(tmp_path)), "steps")
    marks = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "v"]
    assert marks == [[[15.0, 1.0]]] * 4  # of the seed that has come so far
    thin = [line for line in axes.lines if line.get_linewidth() == 0.5 and len(line.get_xdata())]
    assert [line.get_xdata()[0] for line in thin] == [13] * 4
    assert len(axes.collections) == 4  # bands
    assert "triangle: another stage begins" in axes.get_title()


def test_validation_is_shown_where_all_seeds_have_it(tmp_path):
    (run,) = [make_run(tmp_path)]
    log_metrics(run)
    _, axes = _over(_groups([run]), "tokens")
    (crosses,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert crosses.get_xydata().tolist() == [[200.0, 2.5]]
