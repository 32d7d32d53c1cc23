"""Many runs of the trainer from one file: on a Slurm cluster, or one after another on a machine.

`spec` reads the sweep file, `resolve` asks the trainer what each point means, `runs` is a run's
folder, `submit` decides what to send and `worker` is one attempt at one run. `status`, `collect`
and `plots` read run folders alone. The command is `scripts/sweep.py`.
"""
