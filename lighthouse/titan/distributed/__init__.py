"""How processes are laid out, the ring of context parallelism, and what CPUs need.

torchtitan's lowest modules import these, so none imports torchtitan at the top.
"""
