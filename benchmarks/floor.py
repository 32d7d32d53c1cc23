"""The least that a step can take on one GPU, out of what was measured of its parts alone.

Products at the rate of a large one; attention as long as a layer takes by itself; what is done
element by element, and the optimizer, as the bytes that must move at the rate of a copy. Every
product reads and writes memory, and between two products each tensor is read and written once.
Under full checkpointing a layer runs again but for the product by w2 and the sum behind it. Several
GPUs have a share of the tokens and of the optimizer each, and nothing for what they exchange.
"""

from dataclasses import dataclass
from typing import Any

from benchmarks.training_cases import Run, sizes
from lighthouse.config import LighthouseConfig, WindowConfig
from lighthouse.cost.seconds import OPTIMIZER_BYTES
from lighthouse.cost.sizes import Model

Results = dict[str, Any]

PRODUCTS, ATTENTION, ELEMENTWISE, OPTIMIZER = "products", "attention", "elementwise", "optimizer"


def elements(model: Model, *, again: bool = False) -> int:
    """Moved per token and layer, forward and backward, and where the layer runs ``again``.

    Forward: the first norm reads the input and writes its own; rotary embedding reads and writes
    queries and keys; the first sum and the second norm read the input and what attention adds, and
    write both; SwiGLU reads two and writes one; the second sum reads two and writes one. Backward:
    SwiGLU reads its output's gradient and both inputs, and writes two gradients; the second norm
    reads gradients of two products, that of the sum and the sum, and writes one; rotary embedding
    as forward; the first norm reads gradients of three products, that of the sum and the input, and
    writes one. Again: as forward, without the second sum, and SwiGLU's output is written where its
    inputs are at hand for their gradients.
    """
    forward = 2 * model.dim + 4 * model.dim + 3 * model.dim + 3 * model.ffn_dim
    backward = 5 * model.dim + 6 * model.dim + 5 * model.ffn_dim
    rotary = 2 * (model.dim + model.kv_dim)
    rerun = forward - 3 * model.dim - 2 * model.ffn_dim + rotary
    return forward + backward + 2 * rotary + again * rerun


@dataclass(frozen=True)
class Alone:
    """What layers of 8 heads of 128 took by themselves, forward and backward, in milliseconds.

    Attributes:
        attention: results of ``benchmarks.attention``.
        windows: results of ``benchmarks.windows``.
    """

    attention: Results
    windows: Results

    def layer(self, config: LighthouseConfig | WindowConfig | None, seq_len: int) -> float:
        """One layer's attention.

        Raises:
            LookupError: it was not measured.
        """
        both: float
        if isinstance(config, WindowConfig):
            kernel, wanted = "two triangles, cuDNN", (config.window, 8)
            for row in self.windows["rows"]:
                same = row["kernel"] == kernel and self.windows["seq_len"] == seq_len
                if same and (row["window"], row["kv_heads"]) == wanted:
                    both = row["ms"][1]
                    return both
        for result in self.attention["results"]:
            if (result["seq_len"], result["kv_heads"], result["scorer"]) != (seq_len, 8, "norm"):
                continue
            if config is None and "dense_ms" in result:
                both = result["dense_ms"][1]
                return both
            keys = ("num_levels", "pooling_factor", "topk")
            if isinstance(config, LighthouseConfig) and all(
                result[key] == getattr(config, key) for key in keys
            ):
                both = result["lighthouse_ms"][1]
                return both
        raise LookupError(f"{config} was not measured alone at {seq_len:,} tokens")


def floor_ms(run: Run, alone: Alone, matmul_tflops: float) -> dict[str, float]:
    """Milliseconds of a step's parts.

    Args:
        run: a result of ``benchmarks.training`` on one GPU, without checkpointing.
        matmul_tflops: of a large product.
    """
    _, layout, work = sizes(run)
    assert layout.gpus == 1 and work.checkpointing == "none"
    attention = sum(alone.layer(config, work.seq_len) for config in work.attention)
    floor = floor_around_attention(run, alone.attention["copy_tb_per_s"], matmul_tflops)
    return floor | {ATTENTION: work.local_batch * attention}


def floor_around_attention(
    run: Run, copy_tb_per_s: float, matmul_tflops: float
) -> dict[str, float]:
    """Milliseconds of all but attention, on each GPU."""
    model, layout, work = sizes(run)
    assert work.accumulation == 1 and work.checkpointing in ("none", "full")
    assert layout.gpus == layout.cp, "parameters are sharded over what the sequence is"
    tokens, copy = work.local_batch * work.seq_len / layout.cp, copy_tb_per_s * 1e9
    again = work.checkpointing == "full"
    moved = tokens * model.layers * elements(model, again=again) * work.element_bytes
    rerun = model.layer_matrices - model.ffn_matrices // 3
    products = 6 * model.matrices + again * 2 * model.layers * rerun
    return {
        PRODUCTS: products * tokens / matmul_tflops / 1e9,
        ELEMENTWISE: moved / copy,
        OPTIMIZER: OPTIMIZER_BYTES * model.parameters / layout.gpus / copy,
    }
