"""A dry run: ``python -m lighthouse.titan.plan``.

`job` is what a job would take, `stage` of one stage, `work` the sizes that the cost model asks for,
`fit` what fits and which key makes it smaller, and `table` how it is shown.
"""
