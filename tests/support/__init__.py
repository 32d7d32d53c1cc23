"""What tests share: oracles, inputs, ways to start the trainer, stand-ins, and disturbances."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
TRAIN_CONFIGS = ROOT / "train_configs"
