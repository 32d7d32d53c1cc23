"""FLOPs per token count what each layer does in the present stage."""

import dataclasses

import pytest
import torch

from lighthouse.cost import sizes
from lighthouse.titan.config.stages import Stages
from lighthouse.titan.distributed.layout import layout_of
from lighthouse.titan.llama3.flops import flops_per_token
from lighthouse.titan.llama3.layers import apply_lighthouse, set_stage, wrapped_modules
from lighthouse.titan.llama3.model_args import model_args_of
from lighthouse.titan.plan.work import model_of, work_of
from tests.support.models import on_meta

N, S = 98304, 18432


def build(*args: str, n_kv_heads: int = 8):
    from torchtitan.config import ConfigManager
    from torchtitan.protocols.train_spec import get_train_spec

    model = "--model.flavor 530M_byte --model.tokenizer byte".split()
    job = ConfigManager().parse_args([*model, *args])
    spec = get_train_spec("llama3")
    model_args = dataclasses.replace(spec.model_args["530M_byte"], n_kv_heads=n_kv_heads)
    with torch.device("meta"):
        model = spec.model_cls(model_args)
        apply_lighthouse(model, job)
    return job, model, model_args


def test_lighthouse_layers_attend_to_the_sub_sequence():
    args = f"--training.seq_len {N} --lighthouse.enable --lighthouse.dense_from_step 10".split()
    job, model, model_args = build(*args, *"--lighthouse.dense_layers 0 1 28 29".split())
    _, dense = model_args.get_nparams_and_flops(model, N)
    parameters = sum(p.numel() for p in model.parameters()) - 264 * 1024
    assert dense == 6 * parameters + 30 * 12 * 1024 * N

    set_stage([model], Stages.of(job).at(1))
    expected = 6 * parameters + 12 * 1024 * (4 * N + 26 * S * S / N)
    assert flops_per_token([model], dense, model_args, job) == pytest.approx(expected, rel=1e-12)
    set_stage([model], Stages.of(job).at(10))
    assert flops_per_token([model], dense, model_args, job) == dense


def test_other_models_keep_their_own_count():
    assert flops_per_token([torch.nn.Linear(2, 2)], 12, object(), build()[0]) == 12


def test_every_layer_counts_its_own_parameters_and_scorer():
    args = f"--training.seq_len {N} --lighthouse.enable --lighthouse.layer_overrides".split()
    overrides = "0-27:topk=4096,28:scorer=dilated,29:scorer=gla"
    job, model, model_args = build(*args, overrides)
    set_stage([model], Stages.of(job).at(1))
    larger = N // 16 + 2 * 4 * 4096
    rows = 28 * larger**2 / N + 2 * S * S / N
    # Two forward passes of 4 * dim: over N / 4 tokens, and over the 128 columns of a state.
    scoring = 8 * 1024 * (N / 4 + 128)
    expected = 30 * 12 * 1024 * N + 12 * 1024 * (rows - 30 * N) + scoring
    assert flops_per_token([model], 30 * 12 * 1024 * N, model_args, job) == round(expected)


def test_grouped_query_heads_attend_like_any_other():
    def saved(n_kv_heads):
        job, model, model_args = build(
            *f"--training.seq_len {N} --lighthouse.enable".split(), n_kv_heads=n_kv_heads
        )
        _, dense = model_args.get_nparams_and_flops(model, N)
        set_stage([model], Stages.of(job).at(1))
        return dense - flops_per_token([model], dense, model_args, job)

    assert saved(2) == saved(8) == 30 * 12 * 1024 * (N - S * S // N)


WINDOWS = "--lighthouse.window 4096 --lighthouse.window_layers 1 2"


def test_windows_count_the_pairs_that_they_are_of_all():
    args = f"--training.seq_len {N} --lighthouse.enable {WINDOWS}".split()
    pairs = sum(min(token + 1, 4096) for token in range(N))
    # Twice as many, since a causal mask is not discounted; of N tokens it is N**2.
    window = 2 * pairs - 4096
    expected = 12 * 1024 / N * (2 * window + 28 * S**2)
    job, model, model_args = build(*args)
    found = flops_per_token([model], 30 * 12 * 1024 * N, model_args, job)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("windows", ["", WINDOWS])
def test_documents_leave_a_share_of_the_pairs(windows):
    args = f"--training.seq_len {N} --lighthouse.enable {windows}".split()
    job, model, model_args = build(*args)
    parameters, left = 6 * 10**8, 0.1
    layers = 30
    dense = parameters + layers * 12 * 1024 * N
    found = flops_per_token([model], dense, model_args, job, pairs_left=left)
    near = min(2 * 4096 * N - 4096**2, left * N**2)
    squares = layers * left * S**2
    if windows:
        squares = 2 * near + 28 * left * S**2
    assert found == pytest.approx(parameters + 12 * 1024 * squares / N, rel=1e-6)
    set_dense(model)
    found = flops_per_token([model], dense, model_args, job, pairs_left=left)
    assert found == pytest.approx(parameters + left * layers * 12 * 1024 * N, rel=1e-9)


def set_dense(model):
    for module in wrapped_modules([model]):
        module.dense = True


@pytest.mark.parametrize("windows", ["", WINDOWS])
@pytest.mark.parametrize("scorer", ["norm", "dilated", "gla"])
def test_a_dry_run_counts_the_same(scorer, windows):
    args = f"--training.seq_len {N} --lighthouse.enable --lighthouse.dense_from_step 10".split()
    args += f"--lighthouse.dense_layers 0 --lighthouse.scorer {scorer} {windows}".split()
    job, model, model_args = build(*args)
    _, dense = model_args.get_nparams_and_flops(model, N)
    llama = model_of(job)
    layers = Stages.of(job).at(1).layers(job, llama.layers)
    work = work_of(job, layout_of(job, 1), tuple(layers))
    logged = flops_per_token([model], dense, model_args, job)
    assert sizes.flops_per_token(llama, work) == pytest.approx(logged, rel=1e-9)


def test_a_dense_model_keeps_upstreams_count():
    job, model, model_args = build()
    assert flops_per_token([model], 12345, model_args, job) == 12345


def test_context_parallel_ranks_share_the_sub_sequence():
    args = f"--training.seq_len {N} --lighthouse.enable --lighthouse.num_chunks 4".split()
    args += "--lighthouse.scorer dilated".split()
    counts = []
    for degree in ("1", "2"):
        job, model, model_args = build(*args, "--parallelism.context_parallel_degree", degree)
        counts.append(flops_per_token([model], 10**10, model_args, job))
    assert counts[0] == counts[1] < 10**10


def test_a_tied_output_layer_is_a_product():
    """Which torchtitan leaves out, as of an embedding; the plan counts the same."""
    from torchtitan.config import ConfigManager

    flags = ["--model.flavor", "tiny_byte", "--model.tokenizer", "byte"]
    counted = []
    for more in ([], ["--model.args.tied", "True"]):
        job = ConfigManager(checked=False).parse_args([*flags, *more])
        model, model_args = on_meta(job), model_args_of(job)
        _, dense = model_args.get_nparams_and_flops(model, job.training.seq_len)
        counted.append(flops_per_token([model], dense, model_args, job))
        work = work_of(job, layout_of(job, 1), (None,) * model_args.n_layers)
        assert counted[-1] == sizes.flops_per_token(model_of(job), work)
    assert counted[0] == counted[1]
