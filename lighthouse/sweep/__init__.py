"""Many runs of the trainer from one file: on a Slurm cluster, or one after another on a machine.

`spec` reads the sweep file, `resolve` asks the trainer what each point means, `run_folder` is a
run's folder, `identity` says which two are the same, `submit` decides what to send and `worker` is
one attempt at one run. `state`, `collect` and `plots` read run folders alone. The command is
`python -m lighthouse.sweep`.
"""
