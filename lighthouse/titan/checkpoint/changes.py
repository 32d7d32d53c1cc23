"""The one place where a checkpoint's record is compared with the run that is to go on from it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.checkpoint.settings import BATCH, name_of, of_step
from lighthouse.titan.config.stages import Stage, Stages
from lighthouse.titan.run.schedule import factors

NOT_SET = "not set"

_BACK = "put the text back"

# Of a model: its weights would not fit.
_SHAPES = ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "vocab_size", "tied")


@dataclass(frozen=True)
class Change:
    """A setting that is another one than in a checkpoint's record.

    Attributes:
        key: as the user writes it.
        name: that ``checkpoint.accept_changes`` has for it; None where no step that was taken would
            have been another one, and "" where nothing can go on with it.
        note: what the values don't tell.
        back: how to undo it, where that is not by the key.
    """

    key: str
    was: Any
    now: Any
    name: str | None
    note: str = ""
    back: str = ""

    @property
    def needs_a_word(self) -> bool:
        """Whether the run may not just go on."""
        return self.name is not None

    def __str__(self) -> str:
        said = f"{self.key} = {self.now!r} (was {self.was!r})"
        return f"{said}, {self.note}" if self.note else said

    def record(self, step: int | None) -> dict[str, Any]:
        """For the record of checkpoints to come."""
        values = asdict(self)
        del values["back"]
        return {"after_step": step} | values


def changes(saved: RunRecord, now: RunRecord, step: int | None, own: bool) -> list[Change]:
    """What differs, key by key.

    Args:
        saved: of the checkpoint.
        now: of the run.
        step: of the checkpoint; None where steps are counted anew, so that none lies behind.
        own: whether the checkpoint lies in the run's own folder.
    """
    found = [*_data(saved, now), *_tokenizer(saved, now), *_optimizer(saved, now)]
    found += _schedule(saved, now, step)
    if own:
        found += _model(saved, now)
    if step is not None and step > 0 and saved.stages is not None and now.stages is not None:
        found += _stages_and_settings(saved, now, step, saved.stages, now.stages)
    return found


def _data(saved: RunRecord, now: RunRecord) -> Iterator[Change]:
    was, is_now = saved.data_parallel_degree, now.data_parallel_degree
    if was != is_now:
        yield Change("data-parallel degree", was, is_now, "data")
    for key, value in saved.data.items():
        if value != now.data.get(key, NOT_SET):
            yield Change(key, value, now.data.get(key, NOT_SET), "data")
    yield from _text(saved, now)


def _text(saved: RunRecord, now: RunRecord) -> Iterator[Change]:
    if saved.text is None or now.text is None:
        if saved.local_text and now.local_text and saved.local_text != now.local_text:
            was_text, is_text = saved.local_text, now.local_text
            yield Change("training.dataset_path", was_text, is_text, "data", back=_BACK)
        return
    listed = len(now.text) > 1
    if len(saved.text) != len(now.text):
        yield Change("training.sources", len(saved.text), len(now.text), "data", "in number")
        return
    for number, (was, text) in enumerate(zip(saved.text, now.text, strict=True), start=1):
        if not was.same(text):
            key = f"training.sources.{number}.path" if listed else "training.dataset_path"
            name = None if _lies_ahead(saved, now, number - 1) else "data"
            values = was.described(), text.described()
            yield Change(key, *values, name, text.difference(was), _BACK)


def _lies_ahead(saved: RunRecord, now: RunRecord, source: int) -> bool:
    """Whether files have only come behind those that were there, and ranks keep their places."""
    assert saved.text is not None and now.text is not None
    was, text = saved.text[source], now.text[source]
    if now.data["training.dataset_order"] != "files" or not text.only_adds_to(was):
        return False
    if now.data["training.dataloader.num_workers"] > 1:
        return False
    # Whole files are dealt to ranks where there are as many for each, and else each file's rows.
    ranks = now.data_parallel_degree
    return (len(was.files) % ranks == 0) == (len(text.files) % ranks == 0)


def _tokenizer(saved: RunRecord, now: RunRecord) -> Iterator[Change]:
    if saved.tokenizer is not None and saved.tokenizer != now.tokenizer:
        back = "use the tokenizer that it had"
        yield Change("model.tokenizer", saved.tokenizer, now.tokenizer, "tokenizer", back=back)


def _optimizer(saved: RunRecord, now: RunRecord) -> Iterator[Change]:
    for name, was in saved.optimizer.items():
        if was != now.optimizer[name]:
            key = f"optimizer.{name}"
            yield Change(key, was, now.optimizer[name], name_of(key))


def _schedule(saved: RunRecord, now: RunRecord, step: int | None) -> list[Change]:
    was, is_now = saved.lr_scheduler, now.lr_scheduler
    differing = [name for name in was if was[name] != is_now[name]]
    judged = dict(is_now)
    if _listed(saved) and _listed(now):
        # Stages to come may change, and with them where the schedule over all of them ends.
        judged |= {name: was[name] for name in ("total_steps", "decay_ratio")}
    done = max(was["total_steps"], is_now["total_steps"]) if step is None else step
    agree = judged == was or factors(was, done) == factors(judged, done)
    note = ""
    if is_now["total_steps"] == (now.settings or {}).get("training.steps"):
        note = "as training.steps has it" if "total_steps" in differing else ""
    return [
        Change(
            f"lr_scheduler.{name}",
            was[name],
            is_now[name],
            None if agree else "lr_scheduler",
            note if name == "total_steps" else "",
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
    behind = _tables_behind(step, was, is_now) if was.listed and is_now.listed else []
    behind += _behind(saved, now, step, was, is_now, with_stages=not behind)
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
    saved: RunRecord, now: RunRecord, step: int, was: Stages, is_now: Stages, with_stages: bool
) -> list[Change]:
    """Settings of steps that were taken, each key once, with the first step that it concerns."""
    same_ranks = saved.data_parallel_degree == now.data_parallel_degree
    ranks = saved.data_parallel_degree if same_ranks else 1
    workers = now.data["training.dataloader.num_workers"]
    found: dict[str, Change] = {}
    for first in sorted({stage.first for stage in (*was, *is_now) if stage.first <= step}):
        old = of_step(saved.settings or {}, was, first, ranks, workers)
        new = of_step(now.settings or {}, is_now, first, ranks, workers)
        stage = is_now.at(first)
        if old["attention"] != new["attention"]:
            change = _attention(saved, now, first, old["attention"], stage)
            found.setdefault(change.key, change)
            # Which of [lighthouse] matters depends on the attention.
            old, new = ({k: v for k, v in d.items() if _of_any_attention(k)} for d in (old, new))
        if saved.settings is None:  # of which nothing is known but the stages
            old, new = ({k: d[k] for k in old.keys() & new.keys()} for d in (old, new))
        for key, before, after in _differing(old, new):
            written = _as_written(key, saved, now, stage)
            if with_stages or written == key:
                notes = [BATCH] * (key == BATCH)
                notes += [f"at step {first}"] * (is_now.listed or was.listed)
                change = Change(written, before, after, name_of(written), ", ".join(notes))
                found.setdefault(written, change)
    return list(found.values())


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


def _tables_behind(step: int, was: Stages, is_now: Stages) -> list[Change]:
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
