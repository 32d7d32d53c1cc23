"""Llama-3: Lighthouse layers, sizes, loss in chunks, rotary embedding, compilation, FLOPs.

torchtitan's model imports these modules, so none imports torchtitan at the top.
"""
