"""Does what a run hands back compute what the trainer did? On one device, in float32.

    python -m benchmarks.study.exported RUN [--text FOLDER] [--out FILE]

Exports the last checkpoint and loads it with transformers: the largest difference of logits on
held-out text (the run's, or FOLDER's), at the run's longest sequence and at 2,048 tokens, and how
many tokens of a greedy generation are the same. Writes JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torchtitan.models.attention import ScaledDotProductAttentionWrapper
from transformers import AutoModelForCausalLM

from benchmarks.provenance import gpu
from lighthouse.evaluate.subject import of_run
from lighthouse.titan.export import main as export

POSITIONS = 256
PROMPT, NEW = 2048, 64


def compare(run: Path, device: torch.device, text: Path | None = None) -> dict[str, object]:
    """Differences between a run's model and its export, both in float32."""
    overrides = [
        "--training.mixed_precision_param",
        "float32",
        "--validation.local_batch_size",
        "1",
    ]
    # The trainer's own kernels take half precision: in float32 it would write out all scores.
    backends = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    ScaledDotProductAttentionWrapper.sdpa_backends = backends
    ours, held_out = of_run(run, None, device, *overrides, text=text)
    tokens = held_out(1, device)[0][0]
    with tempfile.TemporaryDirectory() as folder:
        export([str(run), f"{folder}/hf", "--dtype", "float32"])
        theirs = AutoModelForCausalLM.from_pretrained(f"{folder}/hf", dtype=torch.float32)
    theirs = theirs.to(device).eval()

    @torch.no_grad()
    def difference(of: Tensor) -> float:
        at = torch.linspace(0, len(of) - 1, POSITIONS, device=device).long()
        hidden = theirs.model(of[None]).last_hidden_state[0, at]
        return (theirs.lm_head(hidden) - ours.logits(of, at)).abs().max().item()

    found = {str(len(of)): difference(of) for of in (tokens[:PROMPT], tokens)}
    prompt = tokens[: min(PROMPT, len(tokens) - NEW)]
    generated = theirs.generate(
        prompt[None], max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
    )[0]
    own = prompt
    for _ in range(NEW):
        last = torch.tensor([len(own) - 1], device=device)
        scores = ours.logits(own, last)[0]
        scores[theirs.generation_config.eos_token_id] = -torch.inf  # as min_new_tokens has it
        own = torch.cat([own, scores.argmax()[None]])
    return {
        "run": run.name,
        "largest_logit_difference_by_length": found,
        "greedy_tokens_equal": int((own == generated)[len(prompt) :].sum()),
        "greedy_tokens": NEW,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    found = compare(options.run, torch.device(options.device), options.text)
    if options.device == "cuda":
        found |= gpu()
    print(json.dumps(found, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
