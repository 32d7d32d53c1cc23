"""The study's models, for ``experimental.custom_import``."""

from torchtitan.models.llama3 import TransformerModelArgs, llama3_args

llama3_args["study_27M"] = TransformerModelArgs(
    dim=512, n_layers=8, n_heads=4, vocab_size=264, multiple_of=256, rope_theta=500000
)
