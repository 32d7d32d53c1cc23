"""Cross-entropy inside the output layer, a chunk of tokens at a time.

The logits of 98,304 tokens over 128,256 words are 24 GiB in bf16; here those of a chunk exist at a
time. As the loss is the end of the graph, its gradients are formed along with it, and nothing is
computed twice.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighthouse.titan.llama3.tied import TiedOutput

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

IGNORE_INDEX = -100


def loss_and_gradient(logits_CV: Tensor, labels_C: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of a chunk, in fp32, and its gradient in the dtype of the logits.

    Args:
        logits_CV: (C, V), any floating dtype.
        labels_C: int64 (C,), ``IGNORE_INDEX`` where there is none.
    """
    valid_C = labels_C != IGNORE_INDEX
    column_C1 = labels_C.clamp(min=0).unsqueeze(-1)
    log_softmax_CV = F.log_softmax(logits_CV, dim=-1, dtype=_accumulator(logits_CV.dtype))
    loss = -(log_softmax_CV.gather(-1, column_C1).squeeze(-1) * valid_C).sum()
    words_V = torch.arange(logits_CV.shape[-1], device=logits_CV.device)
    one_hot_CV = (words_V == column_C1).to(log_softmax_CV.dtype)
    gradient_CV = (log_softmax_CV.exp() - one_hot_CV) * valid_C.unsqueeze(-1)
    return loss, gradient_CV.to(logits_CV.dtype)


def token_losses(
    output: Callable[[Tensor], Tensor], hidden_TD: Tensor, labels_T: Tensor, chunk_tokens: int
) -> Tensor:
    """Cross-entropy of each token, fp32 (T,), in nats; without gradients.

    Args:
        output: logits (C, V) of a chunk (C, D).
        hidden_TD: what the output layer gets.
        labels_T: int64 (T,).
        chunk_tokens: tokens whose logits exist at a time.
    """
    chunks = zip(hidden_TD.split(chunk_tokens), labels_T.split(chunk_tokens), strict=True)
    losses = [
        F.cross_entropy(output(hidden_CD).float(), labels_C, reduction="none")
        for hidden_CD, labels_C in chunks
    ]
    return torch.cat(losses)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        labels_T: Tensor,
        chunk_tokens: int,
        of_chunk: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        with_gradients: bool,
    ) -> Tensor:
        wide = _accumulator(hidden_TD.dtype)
        loss = torch.zeros((), dtype=wide, device=hidden_TD.device)
        if with_gradients:
            grad_hidden_TD = torch.empty_like(hidden_TD)
            grad_weight_VD = torch.zeros_like(weight_VD, dtype=wide)
        for start in range(0, hidden_TD.shape[0], chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            hidden_CD = hidden_TD[chunk]
            chunk_loss, grad_logits_CV = of_chunk(hidden_CD @ weight_VD.T, labels_T[chunk])
            loss += chunk_loss
            if with_gradients:
                torch.mm(grad_logits_CV, weight_VD, out=grad_hidden_TD[chunk])
                grad_weight_VD += grad_logits_CV.T @ hidden_CD
        if with_gradients:
            ctx.save_for_backward(grad_hidden_TD, grad_weight_VD.to(weight_VD.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_TD, grad_weight_VD = ctx.saved_tensors
        return grad_hidden_TD * grad_loss, grad_weight_VD * grad_loss, None, None, None, None


class ChunkedLoss:
    """The loss that an output layer's weight makes of hidden states.

    Attributes:
        chunk_tokens: tokens whose logits exist at a time.
        of_chunk: ``loss_and_gradient``, compiled or not.
    """

    def __init__(self, chunk_tokens: int, compile_backend: str | None) -> None:
        self.chunk_tokens = chunk_tokens
        self.of_chunk: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = loss_and_gradient
        if compile_backend is not None:
            self.of_chunk = torch.compile(loss_and_gradient, backend=compile_backend)

    def __call__(self, hidden_BND: Tensor, weight_VD: Tensor, labels_BN: Tensor) -> Tensor:
        """Summed cross-entropy under labels int64 (B, N), a scalar.

        The same loss and gradients as ``cross_entropy(logits.float(), reduction="sum")``, up to
        rounding: the gradient of the weight is summed over chunks in fp32. Deterministic.
        """
        hidden_TD = hidden_BND.flatten(0, 1)
        device_type = hidden_BND.device.type
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
            hidden_TD, weight_VD = hidden_TD.to(dtype), weight_VD.to(dtype)
        return _ChunkedCrossEntropy.apply(
            hidden_TD,
            weight_VD,
            labels_BN.flatten(),
            self.chunk_tokens,
            self.of_chunk,
            # In the function itself gradients are always off; validation wants none.
            torch.is_grad_enabled() and (hidden_TD.requires_grad or weight_VD.requires_grad),
        )


class OutputLoss(nn.Linear):
    """The output layer; given labels, it returns their loss instead of the logits."""

    def __init__(self, linear: nn.Linear, loss: ChunkedLoss) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.loss = loss

    def forward(self, hidden_BND: Tensor, labels_BN: Tensor | None = None) -> Tensor:
        """Logits (B, N, V), or with labels int64 (B, N) their summed cross-entropy, a scalar."""
        if labels_BN is None:
            return super().forward(hidden_BND)
        return self.loss(hidden_BND, self.weight, labels_BN)


def apply_chunked_loss(model: Any, job_config: "JobConfig") -> None:
    """Let a just built (meta device) Transformer compute the loss, if the job asks for chunks."""
    chunk_tokens = job_config.training.loss_chunk_tokens
    if chunk_tokens:
        compile_config = job_config.compile
        compiled = compile_config.enable and "loss" in compile_config.components
        loss = ChunkedLoss(chunk_tokens, compile_config.backend if compiled else None)
        if isinstance(model.output, TiedOutput):
            model.output.loss = loss
        else:
            model.output = OutputLoss(model.output, loss)


def labels_for_model(job_config: "JobConfig", labels: Tensor) -> dict[str, Tensor]:
    """What the model's forward takes in addition, so that it returns the loss."""
    return {"labels": labels} if job_config.training.loss_chunk_tokens else {}


def loss_of_model(pred: Tensor, labels: Tensor) -> Tensor:
    """Loss function of a model that has computed the loss itself."""
    del labels
    return pred
