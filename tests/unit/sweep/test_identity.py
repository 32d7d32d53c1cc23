"""Which two runs are the same."""

from lighthouse.sweep.identity import identity


def test_a_key_that_the_trainer_gains_changes_no_identity():
    values, defaults = {"training.steps": 5, "optimizer.lr": 0.1}, {"optimizer.lr": 0.1}
    with_it = ({**values, "training.new": 1}, {**defaults, "training.new": 1})
    assert identity(values, defaults, 1) == identity(*with_it, 1)
    assert identity(values, defaults, 1) != identity({**values, "training.new": 2}, with_it[1], 1)
