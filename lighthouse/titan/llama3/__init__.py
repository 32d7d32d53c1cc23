"""Llama-3: what a job's model is, Lighthouse layers, loss in chunks, positions, compilation, FLOPs.

torchtitan's model and configuration import these modules, so none imports torchtitan at the top.
"""
