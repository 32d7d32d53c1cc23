"""Text: which files, documents from them, packing into sequences, tokenizers, loaders."""
