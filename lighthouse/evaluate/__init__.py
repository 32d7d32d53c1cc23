"""What a model can do with a long context: ``python -m lighthouse.evaluate``."""
