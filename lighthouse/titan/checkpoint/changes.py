"""The one place where a checkpoint's record is compared with the run that is to go on from it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from lighthouse.titan.checkpoint.change import NOT_SET, Change
from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.checkpoint.settings import BATCH, name_of, of_step
from lighthouse.titan.checkpoint.text_changes import text_changes
from lighthouse.titan.config.stages import Stage, Stages, in_effect
from lighthouse.titan.run.schedule import factors, staged

# Of a model: its weights would not fit.
_SHAPES = ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "vocab_size", "tied")


def changes(
    saved: RunRecord,
    now: RunRecord,
    step: int | None,
    own: bool,
    why_read: Sequence[str] = (),
) -> list[Change]:
    """What differs, key by key.

    Args:
        saved: of the checkpoint.
        now: of the run.
        step: of the checkpoint; None where steps are counted anew, so that none lies behind.
        own: whether the checkpoint lies in the run's own folder.
        why_read: as for :func:`text_changes`.
    """
    found = [*text_changes(saved, now, why_read), *_optimizer(saved, now)]
    found += _schedule(saved, now, step)
    if own:
        found += _model(saved, now)
    if step is not None and step > 0 and saved.stages is not None and now.stages is not None:
        found += _stages_and_settings(saved, now, step, saved.stages, now.stages)
    return found


def _optimizer(saved: RunRecord, now: RunRecord) -> Iterator[Change]:
    for name, was in saved.optimizer.items():
        if was != now.optimizer[name]:
            key = f"optimizer.{name}"
            yield Change(key, was, now.optimizer[name], name_of(key))


def _schedule(saved: RunRecord, now: RunRecord, step: int | None) -> list[Change]:
    was, is_now = saved.lr_scheduler, now.lr_scheduler
    differing = [name for name in was if was[name] != is_now[name]]
    done = max(was["total_steps"], is_now["total_steps"]) if step is None else step
    agree = is_now == was or factors(was, done) == factors(is_now, done)
    note = back = ""
    steps = (now.settings or {}).get("training.steps")
    if "total_steps" in differing and is_now["total_steps"] == steps:
        note = "as training.steps has it"
        if was["total_steps"] < steps:  # beyond its end a schedule has no rate
            key = "training.steps, the sum of [[stages]]," if _listed(now) else "training.steps"
            back = f"leave {key} at {was['total_steps']}"
    return [
        Change(
            f"lr_scheduler.{name}",
            was[name],
            is_now[name],
            None if agree else "lr_scheduler",
            note if name == "total_steps" else "",
            back if name == "total_steps" else "",
        )
        for name in differing
    ]


def _model(saved: RunRecord, now: RunRecord) -> Iterator[Change]:
    if saved.model is None or now.model is None:
        return
    for key in [*saved.model, *(key for key in now.model if key not in saved.model)]:
        was, is_now = saved.model.get(key, NOT_SET), now.model.get(key, NOT_SET)
        if was != is_now:
            yield Change(f"model.args.{key}", was, is_now, "" if key in _SHAPES else "model")


def _listed(record: RunRecord) -> bool:
    return record.stages is not None and record.stages.listed


def _stages_and_settings(
    saved: RunRecord, now: RunRecord, step: int, was: Stages, is_now: Stages
) -> list[Change]:
    behind = _behind(saved, now, step, was, is_now, with_stages=True)
    same_rates = not (was.listed or is_now.listed) or _same_rates(saved, step, was, is_now)
    if was.listed and is_now.listed and (behind or not same_rates):
        behind = _tables_behind(saved, now, step, was, is_now)
        moved = [change for change in behind if change.key.endswith(".steps")]
        back = moved[0].way_back if moved else ""
        behind += _behind(saved, now, step, was, is_now, with_stages=not behind, moved_back=back)
    elif not same_rates:
        behind += _rates(step, was, is_now)
    found = {change.key: change for change in behind}
    # What is left lies ahead.
    for key, old, new in _differing(saved.settings or {}, now.settings or {}):
        if saved.settings is not None:
            found.setdefault(key, Change(key, old, new, None))
    for change in _tables_ahead(step, was, is_now):
        found.setdefault(change.key, change)
    return list(found.values())


def _differing(was: dict[str, Any], is_now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(was.keys() | is_now.keys()):
        old, new = was.get(key, NOT_SET), is_now.get(key, NOT_SET)
        if old != new:
            yield key, old, new


def _behind(
    saved: RunRecord,
    now: RunRecord,
    step: int,
    was: Stages,
    is_now: Stages,
    with_stages: bool,
    moved_back: str = "",
) -> list[Change]:
    """Settings of steps that were taken, each key once, with the first step that it concerns.

    Args:
        with_stages: those that a stage sets, too.
        moved_back: how to undo what follows from steps that are in another stage now.
    """
    workers = now.data["training.dataloader.num_workers"]
    found: dict[str, Change] = {}
    for first in sorted({stage.first for stage in (*was, *is_now) if stage.first <= step}):
        old = of_step(saved.settings or {}, was, first, saved.data_parallel_degree, workers)
        new = of_step(now.settings or {}, is_now, first, now.data_parallel_degree, workers)
        stage = is_now.at(first)
        follows = moved_back if was.at(first).number != stage.number else ""
        if old["attention"] != new["attention"]:
            change = _attention(saved, now, first, old["attention"], stage)
            change = replace(change, back=follows or change.back)
            found.setdefault(change.key, change)
            # Which of [lighthouse] matters depends on the attention.
            old, new = ({k: v for k, v in d.items() if _of_any_attention(k)} for d in (old, new))
        if saved.settings is None:  # of which nothing is known but the stages
            old, new = ({k: d[k] for k in old.keys() & new.keys()} for d in (old, new))
        for key, before, after in _differing(old, new):
            written = _as_written(key, saved, now, stage)
            if with_stages or written == key:
                change = Change(written, before, after, name_of(written))
                if key == BATCH:
                    change = _batch(change, saved, now, was.at(first), stage)
                change = replace(change, back=follows or change.back)
                if is_now.listed or was.listed:
                    notes = [*([change.note] if change.note else []), f"at step {first}"]
                    change = replace(change, note=", ".join(notes))
                found.setdefault(written, change)
    return list(found.values())


def _batch(total: Change, saved: RunRecord, now: RunRecord, was: Stage, stage: Stage) -> Change:
    """Another number of sequences in a step, by the key that says how many a rank has."""
    if total.key.endswith("global_batch_size"):
        return replace(total, note=BATCH)
    local = [
        at.table.get("local_batch_size", (record.settings or {})["training.local_batch_size"])
        for record, at in ((saved, was), (now, stage))
    ]
    ranks = now.data_parallel_degree
    if ranks == saved.data_parallel_degree == 1:
        note = BATCH
    else:
        note = (
            f"{BATCH} are {total.now} by {ranks} data-parallel ranks, and were {total.was} by "
            f"{saved.data_parallel_degree}"
        )
    way = f"set {total.key} = {total.was // ranks}"
    if total.was % ranks:
        way = f"train on a number of data-parallel ranks that divides {total.was}"
    return replace(total, was=local[0], now=local[1], note=note, back=way)


def _of_any_attention(key: str) -> bool:
    return key != "attention" and not key.startswith("lighthouse.")


def _attention(saved: RunRecord, now: RunRecord, first: int, was: str, stage: Stage) -> Change:
    """A step of the past that would have another attention now, by the key that says so."""
    if stage.table:
        key = f"stages.{stage.number}.attention"
        return Change(key, was, stage.attention, "attention", f"at step {first}")
    enabled = (now.settings or {}).get("lighthouse.enable")
    if not enabled and not _listed(saved):
        # Dense from here on: the second run of two, which says nothing of the first.
        return Change("lighthouse.enable", True, False, None)
    key = "lighthouse.dense_from_step"
    before, after = ((r.settings or {}).get(key) for r in (saved, now))
    if before == after or _listed(saved):
        key, before, after = "attention", was, stage.attention
    return Change(key, before, after, "attention", f"and step {first} was {was}")


def _as_written(key: str, saved: RunRecord, now: RunRecord, stage: Stage) -> str:
    """As the user writes a key of `of_step`."""
    last = key.rpartition(".")[2]
    if key == BATCH:
        settings = [record.settings or {} for record in (saved, now)]
        whole = any(values.get("training.global_batch_size", -1) > 0 for values in settings)
        whole = whole or "global_batch_size" in stage.table
        last = "global_batch_size" if whole else "local_batch_size"
        key = f"training.{last}"
    return f"stages.{stage.number}.{last}" if last in stage.table else key


def _same_rates(saved: RunRecord, step: int, was: Stages, is_now: Stages) -> bool:
    """Whether stages make the same of the schedule in all steps that were taken."""
    schedule = factors(saved.lr_scheduler, step).__getitem__
    return all(
        staged(schedule, was, done) == staged(schedule, is_now, done) for done in range(step)
    )


def _rates(step: int, was: Stages, is_now: Stages) -> list[Change]:
    """What stages behind say of the rate, where only one of the runs has a list of them."""
    found = []
    for stage in was if was.listed else is_now:
        for name in ("lr_factor", "warmup_steps"):
            if stage.first <= step and name in stage.table:
                key, value = f"stages.{stage.number}.{name}", stage.table[name]
                old, new = (value, NOT_SET) if was.listed else (NOT_SET, value)
                found.append(Change(key, old, new, name_of(key)))
    return found


def _tables_behind(
    saved: RunRecord, now: RunRecord, step: int, was: Stages, is_now: Stages
) -> list[Change]:
    """A stage that the step is in may only end elsewhere; one behind it stays as it was."""
    found = []
    for stage in was:
        if stage.first > step:
            break
        trained = f"of which {min(stage.last, step) - stage.first + 1} steps are trained"
        if stage.number > len(is_now.stages):
            key = f"stages.{stage.number}"
            found.append(Change(key, stage.table, "gone", "training", trained))
            continue
        there = is_now.stages[stage.number - 1]
        for key, old, new in _differing(stage.table, there.table):
            if key == "steps" and (stage.last >= step and there.last >= min(stage.last, step)):
                continue
            before = in_effect(stage.table, key, saved.settings or {})
            if before == in_effect(there.table, key, now.settings or {}):
                continue
            written = f"stages.{stage.number}.{key}"
            found.append(Change(written, old, new, name_of(written), trained))
    return found


def _tables_ahead(step: int, was: Stages, is_now: Stages) -> Iterator[Change]:
    """Stages that begin later, and how long the present one is."""
    if not (was.listed or is_now.listed):
        return
    for number in range(1, 1 + max(len(was.stages), len(is_now.stages))):
        old, new = (
            stages.stages[number - 1].table if number <= len(stages.stages) else {}
            for stages in (was, is_now)
        )
        for key, before, after in _differing(old, new):
            yield Change(f"stages.{number}.{key}", before, after, None)
