"""Models of jobs, as the trainer builds them: first on the meta device."""

from typing import Any

import torch

from lighthouse import LighthouseAttention
from lighthouse.titan.llama3.layers import apply_lighthouse
from lighthouse.titan.llama3.model_args import model_args_of
from lighthouse.titan.llama3.tied import apply_tied


def on_meta(job_config: Any) -> Any:
    """The job's model with its kinds of layers."""
    from torchtitan.protocols.train_spec import get_train_spec

    spec = get_train_spec(job_config.model.name)
    with torch.device("meta"):
        model_args = model_args_of(job_config)
        model = spec.model_cls(model_args)
        apply_tied(model, model_args)
        apply_lighthouse(model, job_config)
    return model


def drawn(job_config: Any) -> Any:
    """The same with weights, which are those of a new run."""
    model = on_meta(job_config)
    draw_weights(model)
    return model


def draw_weights(model: Any) -> None:
    """Give a model of the meta device weights."""
    torch.manual_seed(0)
    model.to_empty(device="cpu")
    with torch.no_grad():
        model.init_weights()


def lighthouse_layers(model: Any) -> dict[int, LighthouseAttention]:
    """Attention modules of the layers that are not always dense, by layer."""
    modules = {int(i): block.attention.inner_attention for i, block in model.layers.items()}
    return {i: m for i, m in modules.items() if isinstance(m, LighthouseAttention)}
