"""Lighthouse Attention with transformers' Trainer: a Lighthouse stage, then a dense tail.

    pip install 'lighthouse-attention[evaluate]' accelerate
    python examples/transformers_trainer.py [--steps 20]

A small random Llama with grouped heads on made-up text, in seconds on a CPU. For a model of your
own, load it with ``from_pretrained`` and give the Trainer sequences that are all as long as
``config.next_len`` says.
"""

import argparse
import tempfile

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lighthouse import LighthouseConfig
from lighthouse.transformers import use_dense, use_lighthouse

SEQ_LEN = 512


class DenseTail(TrainerCallback):
    """Switch to dense attention before a step."""

    def __init__(self, first: int) -> None:
        self.first = first

    def on_step_begin(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step + 1 == self.first:
            use_dense(model)


def text(sequences: int) -> list[dict[str, torch.Tensor]]:
    """Sequences that repeat a random word of 16 letters out of 8."""
    words = torch.randint(0, 8, (sequences, 16))
    return [{"input_ids": word, "labels": word} for word in words.repeat(1, SEQ_LEN // 16)]


def main(arguments: list[str] | None = None) -> Trainer:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args(arguments).steps

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=SEQ_LEN,
        )
    )
    config = LighthouseConfig(topk=16, stratum=8)
    config.validate(SEQ_LEN)
    use_lighthouse(model, config, dense_layers=[0, 3])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=4,
                learning_rate=1e-2,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
            ),
            train_dataset=text(64),
            callbacks=[DenseTail(first=steps * 3 // 4 + 1)],
        )
        trainer.train()
    return trainer


if __name__ == "__main__":
    main()
