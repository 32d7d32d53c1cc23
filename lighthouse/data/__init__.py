"""Look at text before training on it."""
