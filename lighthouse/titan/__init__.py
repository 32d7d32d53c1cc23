"""The connection to torchtitan: what ``patches/`` call. Only modules in here import torchtitan."""
