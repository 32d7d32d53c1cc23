"""Whether a run that ended is tried again by itself."""

import re
from collections.abc import Sequence

from lighthouse.refusal import EXIT_CODE
from lighthouse.sweep.run_folder import CANCELLED, DIVERGED, FAILED, STOPPED, Attempt
from lighthouse.sweep.submission import Submission


def given_up(attempts: Sequence[Attempt], submission: Submission) -> str | None:
    """Why a run that has just failed is not tried again, or None if it is.

    Only failures of the same submission count, so that sending a run again gives it a new chance.
    """
    failures = [a for a in attempts if a.reason == FAILED and a.submission == submission.number]
    if failures and failures[-1].exit_code == EXIT_CODE:
        return "refused, and would be again"
    if len(failures) > submission.resources.retries:
        return f"failed {len(failures)} times"
    same = {(_same_way(a.error or ""), a.step) for a in failures[-2:]}
    return "failed twice the same way" if len(failures) > 1 and len(same) == 1 else None


def is_over(attempts: Sequence[Attempt], submission: Submission) -> bool:
    """Whether a submission's run has ended in a way after which its worker does not go on."""
    own = [attempt for attempt in attempts if attempt.submission == submission.number]
    if not own:
        return False
    if own[-1].reason == FAILED:
        return given_up(own, submission) is not None
    return own[-1].reason in (CANCELLED, DIVERGED, STOPPED)


def _same_way(error: str) -> str:
    """An error without what differs between two of the same kind: numbers and addresses."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", error)
