"""A flavor of Llama 3 whose full checkpoint is small; for ``experimental.custom_import``."""

from torchtitan.models.llama3 import TransformerModelArgs, llama3_args

llama3_args["small_byte"] = TransformerModelArgs(
    dim=16, n_layers=3, n_heads=2, multiple_of=16, rope_theta=500000, vocab_size=264
)
