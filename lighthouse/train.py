"""The trainer, from a checkout or from a wheel.

    torchrun --nproc_per_node N -m lighthouse.train --job.config_file FILE [--KEY VALUE ...]

In a checkout ``-m torchtitan.train`` is the same, but looks after its launcher only when its
imports are done.
"""

import runpy

from lighthouse.orphan import watch

if __name__ == "__main__":
    watch()  # at once: the imports below take seconds
    import lighthouse.titan  # noqa: F401  (puts the patched tree on the path)

    runpy.run_module("torchtitan.train", run_name="__main__", alter_sys=True)
