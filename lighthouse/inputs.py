"""What queries, keys and values must be, whatever attention is asked for."""

from torch import Tensor

QKV = tuple[Tensor, Tensor, Tensor]
"""Queries (B, Hq, N, D), keys and values (B, Hkv, N, D), or what is made of each."""


def check_inputs(
    q_BHND: Tensor, k_BHMD: Tensor, v_BHMD: Tensor, *, keys_in_front: bool = False
) -> None:
    """Refuse tensors that don't fit each other.

    Args:
        q_BHND: (B, Hq, N, D).
        k_BHMD: (B, Hkv, M, D); Hq is a multiple of Hkv.
        v_BHMD: (B, Hkv, M, D).
        keys_in_front: M may be larger than N, which it has to be equal to otherwise.

    Raises:
        ValueError: naming the shapes, dtypes or devices.
    """

    def shapes() -> str:
        return f"q {tuple(q_BHND.shape)}, k {tuple(k_BHMD.shape)}, v {tuple(v_BHMD.shape)}"

    if not (q_BHND.ndim == k_BHMD.ndim == 4 and k_BHMD.shape == v_BHMD.shape):
        raise ValueError(f"q, k, v must be (B, H, N, D) with k and v of one shape, got {shapes()}")
    batch, heads, seq_len, head_dim = q_BHND.shape
    kv_heads, num_keys = k_BHMD.shape[1:3]
    if k_BHMD.shape != (batch, kv_heads, num_keys, head_dim) or kv_heads == 0 or heads % kv_heads:
        raise ValueError(
            f"q and k must agree in B, N and D, and Hq be a multiple of Hkv, got {shapes()}"
        )
    if num_keys < seq_len or (num_keys > seq_len and not keys_in_front):
        enough = "k must have as many tokens as q, or more in front of them"
        raise ValueError(
            f"{enough if keys_in_front else 'q and k must agree in N'}, got {shapes()}"
        )
    if heads == 0 or head_dim == 0:
        raise ValueError(f"Hq and D must be at least 1, got {shapes()}")
    if not q_BHND.is_floating_point() or not q_BHND.dtype == k_BHMD.dtype == v_BHMD.dtype:
        raise ValueError(
            "q, k, v must share one floating dtype, got "
            f"{q_BHND.dtype}, {k_BHMD.dtype}, {v_BHMD.dtype}"
        )
    if not q_BHND.device == k_BHMD.device == v_BHMD.device:
        raise ValueError(
            f"q, k, v must be on one device, got {q_BHND.device}, {k_BHMD.device}, {v_BHMD.device}"
        )
