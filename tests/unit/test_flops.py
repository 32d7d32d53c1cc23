"""FLOPs per token count what each layer does in the present stage."""

import pytest
import torch

from lighthouse.titan.flops import flops_per_token
from lighthouse.titan.model import apply_lighthouse, set_stage

N, S = 98304, 18432


def build(*args: str):
    from torchtitan.config import ConfigManager
    from torchtitan.protocols.train_spec import get_train_spec

    job = ConfigManager().parse_args(["--model.flavor", "530M_byte", *args])
    spec = get_train_spec("llama3")
    model_args = spec.model_args["530M_byte"]
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

    set_stage([model], job.lighthouse, 1)
    expected = 6 * parameters + 12 * 1024 * (4 * N + 26 * S * S / N)
    assert flops_per_token([model], dense, model_args, job) == pytest.approx(expected, rel=1e-12)
    set_stage([model], job.lighthouse, 10)
    assert flops_per_token([model], dense, model_args, job) == dense


def test_a_dense_model_keeps_upstreams_count():
    job, model, model_args = build()
    assert flops_per_token([model], 12345, model_args, job) == 12345


def test_context_parallel_ranks_share_the_sub_sequence():
    args = f"--training.seq_len {N} --lighthouse.enable --lighthouse.num_chunks 4".split()
    counts = []
    for degree in ("1", "2"):
        job, model, model_args = build(*args, "--parallelism.context_parallel_degree", degree)
        counts.append(flops_per_token([model], 10**10, model_args, job))
    assert counts[0] == counts[1] < 10**10
