"""The definition, for a given selection, in differentiable PyTorch at the precision of its inputs.

The yardstick for rounding: where the library is compared with float64, it may be no worse than
about what this plain composition of rounded steps is on the same inputs. In float64 it is held
against the NumPy oracle, and then serves as the oracle of gradients.
"""

import torch

from lighthouse import LighthouseConfig
from tests.support import oracle


def attend_and_scatter(
    config: LighthouseConfig,
    q_BQND: torch.Tensor,
    k_BHND: torch.Tensor,
    v_BHND: torch.Tensor,
    index_BHS: torch.Tensor,
) -> torch.Tensor:
    """Output (B, Q, N, D) for a selection `index` (B, H, S), one query head at a time."""
    B, Q, N, D = q_BQND.shape
    G = Q // k_BHND.shape[1]
    dtype = q_BQND.dtype
    accumulate = torch.promote_types(dtype, torch.float32)
    batch = []
    for b in range(B):
        heads = []
        for head in range(Q):
            flat = index_BHS[b, head // G].tolist()
            entries = [oracle.entry_of(config, N, i) for i in flat]
            averages_SN = torch.zeros(len(entries), N, dtype=accumulate)
            additions_NS = torch.zeros(N, len(entries), dtype=accumulate)
            for row, entry in enumerate(entries):
                tokens = oracle.window(config, entry)
                averages_SN[row, list(tokens)] = 1 / len(tokens)
                additions_NS[list(oracle.spoken_to(config, N, entry)), row] = 1
            q_SD, k_SD, v_SD = (
                (averages_SN @ x.to(accumulate)).to(dtype)
                for x in (q_BQND[b, head], k_BHND[b, head // G], v_BHND[b, head // G])
            )
            logits_SS = q_SD @ k_SD.T * D**-0.5
            future_SS = torch.ones_like(logits_SS, dtype=torch.bool).triu(1)
            weights_SS = logits_SS.masked_fill(future_SS, float("-inf")).softmax(dim=-1)
            rows_SD = weights_SS @ v_SD
            heads.append((additions_NS @ rows_SD.to(accumulate)).to(dtype))
        batch.append(torch.stack(heads))
    return torch.stack(batch)
