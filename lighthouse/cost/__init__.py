"""What a training step costs, from sizes and measured rates.

    sizes.py      a model, its layout over GPUs, a step's work: what is counted
    rates.py      what a device does a second, from rates.json
    seconds.py    work over rates
    memory.py     bytes at the peak
    step.py       both together

Every part is work over a rate. Blocks are taken to be compiled, activations and parameters in use
to be bfloat16 unless the work says otherwise. Under context parallelism of degree W a rank has
N / W tokens and S / W rows of each Lighthouse layer's sub-sequence: all but attention is local,
attention is a ring over W ranks.
"""
