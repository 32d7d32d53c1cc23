"""What the rivals are checked by can tell right from wrong, and their page can always be made."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lighthouse.attention
from benchmarks import rivals_blocks, rivals_methods, rivals_page
from benchmarks.rivals_check import Layer, causal, check, masked, run
from benchmarks.rivals_methods import LAYOUTS, METHODS
from lighthouse.titan.hooks import RunHooks
from tests.support.inputs import normal


def inputs(heads: int, kv_heads: int, n: int = 256, dim: int = 16) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    sizes = (heads, kv_heads, kv_heads)
    drawn = (torch.randn(1, n, h, dim).bfloat16().transpose(1, 2) for h in sizes)
    return tuple(x.requires_grad_() for x in drawn)


BUILDS: dict[str, Callable[..., Layer]] = {
    "cudnn": METHODS["cudnn"].build,
    "flash2": METHODS["flash2"].build,
    "window": partial(rivals_methods.window, width=100),
    "blocks": partial(rivals_methods.short_blocks, length=64),
}


@pytest.mark.parametrize("heads", [(2, 2), (4, 1)])
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_stock_calls_pass(build: Callable[..., Layer], heads: tuple[int, int]) -> None:
    given = inputs(*heads)
    assert check(build(*given), given) <= 1


def test_a_block_too_few_is_noticed() -> None:
    given = inputs(2, 2)
    right = rivals_methods.short_blocks(*given, length=128)
    wrong = replace(right, call=rivals_methods.short_blocks(*given, length=64).call)
    with pytest.raises(AssertionError, match="output is off by"):
        check(wrong, given)


def test_a_wrong_gradient_is_noticed() -> None:
    given = inputs(2, 2)
    right = METHODS["cudnn"].build(*given)
    scaled = replace(right, call=lambda q, k, v: right.call(q, k.detach() * 0.1 + k * 0.9, v))
    with pytest.raises(AssertionError, match="gradient 2 is off by"):
        check(scaled, given)


def test_nothing_to_attend_to_is_zero() -> None:
    given = tuple(x.detach().float() for x in inputs(2, 2))
    mask = causal(256, "cpu").tril(-1)
    found = run(masked(mask), given, torch.ones_like(given[0]))
    assert found[0][:, :, 0].eq(0).all()
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize(("selected", "local"), [(1, 1), (2, 2), (6, 2)])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (4, 1)])
def test_flex_gets_the_blocks_of_the_naive_form(
    heads: tuple[int, int], selected: int, local: int
) -> None:
    q, k, _ = inputs(*heads)
    chosen = rivals_blocks.infllm_blocks(q, k, block=32, selected=selected, local=local)
    mask = rivals_blocks.block_mask(*chosen, 32).to_dense().bool()
    number = chosen[1]
    row = torch.arange(8)
    assert number.eq(row.clamp(max=selected + local)).all()
    assert mask.diagonal(dim1=-2, dim2=-1).all() and not mask.triu(1).any()
    assert mask.sum(-1).eq(number + 1).all()
    near = (row[:, None] >= row) & (row[:, None] - row < local)
    first = (row == 0).expand(8, 8)
    assert mask[..., near | first].all()


def test_moba_reads_its_own_block_and_the_best_before_it() -> None:
    q, k, _ = inputs(2, 2)
    mask = rivals_blocks.moba_mask(q, k, block=32, count=3)
    assert not mask.triu(1).any()
    read = mask.unflatten(-1, (-1, 32)).any(-1).sum(-1)
    block = torch.arange(256) // 32
    assert read.eq((block + 1).clamp(max=3)).all()
    assert mask[..., 255, 224:].all()


def test_blocks_of_nsa_have_ended() -> None:
    seen = rivals_blocks.seen_blocks(256, 32, "cpu")
    assert seen.sum(-1).eq((torch.arange(256) + 1) // 32).all()


def fake_report() -> dict[str, object]:
    rows: list[dict[str, object]] = [{"method": "flash4", "reason": "not there"}]
    for name, method in METHODS.items():
        for layout in method.layouts if name != "flash4" else ():
            row = {"method": name, "layout": layout}
            rows.append({**row, "error_over_allowed": 0.5})
            figures = {"ms": [0.5, 20.0], "extra_memory_gib": 1.0, "graph": method.graph}
            rows.append({**row, "seq_len": 8192, **figures})
            rows.append({**row, "seq_len": 16384, "reason": "out of memory"})
    return {"device": "A GPU", "torch": "2.11", "rows": rows}


@pytest.mark.parametrize("runs", range(3))
def test_the_page_is_whole(runs: int) -> None:
    page = rivals_page.page(*[fake_report()] * runs)
    assert "{" not in page and "}" not in page
    assert ("not measured yet" in page.lower()) == (runs == 0)
    tables = [block for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2 + 2 * len(LAYOUTS) * runs
    for table in tables:
        heads, rule, *rows = table.splitlines()
        assert rows and set(rule) <= set("| -")
        assert {line.count("|") for line in (rule, *rows)} == {heads.count("|")}


def test_the_page_says_why_there_is_no_figure() -> None:
    page = rivals_page.page(fake_report())
    assert "- dense, FlashAttention 4: not there." in page
    assert "- KDA, 8 heads, 16,384 tokens: out of memory." in page


def test_the_plot_is_made(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rivals_page.plot(fake_report()["rows"], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_page_is_that_of_the_results() -> None:
    assert rivals_page.PAGE.read_text() == rivals_page.page(*rivals_page.found())


def test_variants_are_compiled_together_and_timed_later() -> None:
    autotuner = pytest.importorskip("triton.runtime.autotuner")
    from benchmarks.tuning import compiling_only

    compiled = []

    class Kernel:
        def run(self, *arguments: object, **settings: object) -> None:
            compiled.append((arguments, settings))
            if settings["num_stages"] == 1:
                raise RuntimeError("out of shared memory")

    tuner = object.__new__(autotuner.Autotuner)
    tuner.configs = [autotuner.Config({"BLOCK": 16}, num_stages=stages) for stages in (1, 2, 3)]
    tuner.early_config_prune = tuner.perf_model = None
    tuner.fn, tuner.nargs, tuner.cache = Kernel(), {"x": "tensor"}, {}
    with compiling_only():
        taken = tuner.prune_configs({"grid": (1,), "warmup": False, "n": 4})
        tuner.cache["key"] = taken[0]
    assert taken == [tuner.configs[1]]
    assert len(compiled) == 3
    assert all(arguments == ("tensor",) for arguments, _ in compiled)
    assert all(settings["warmup"] and settings["n"] == 4 for _, settings in compiled)
    assert not tuner.cache and tuner.prune_configs({}) == tuner.configs


@pytest.mark.thorough
def test_moba_in_a_run_has_the_gradients_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an operator, compiled, with two query heads to a key head and two sequences."""
    monkeypatch.setattr(lighthouse.attention, "window_attention", None)
    monkeypatch.setattr(RunHooks, "begin_step", RunHooks.begin_step)
    moba = importlib.import_module("benchmarks.study.moba")
    q = normal((2, 4, 2048, 8), 1).requires_grad_()
    k, v = (normal((2, 2, 2048, 8), seed).requires_grad_() for seed in (2, 3))
    grad = normal(q.shape, 4)

    def with_gradients(call: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
        out = call(q, k, v)
        return [out, *torch.autograd.grad(out, (q, k, v), grad)]

    run = torch.compile(partial(moba.moba, window=1024), backend="aot_eager", fullgraph=True)
    wanted = with_gradients(partial(moba.attend, count=2))
    assert all(map(torch.equal, with_gradients(run), wanted))
    with pytest.raises(ValueError, match="window = 700: must be a multiple of 512"):
        moba.moba(q, k, v, window=700)
