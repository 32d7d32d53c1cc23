"""What a run leaves in its folder; readable without the trainer and without PyTorch."""
