"""How long a run that is at work may take still."""

from collections.abc import Mapping

from outlier_features.run.events import Event
from outlier_features.run.stages import STAGES

# Where nothing was measured yet, what a job that loads a model counts against one that does not; as for tiny models.
_LOADING = 3.0
_PRIOR = 0.1  # of the whole, what an expectation counts beside what is seen


class RunProgress:
    """Jobs of a run, weighted by what they are expected to take.

    expected   seconds of a job by rule, from earlier runs; empty where none was measured
    """

    def __init__(self, expected: Mapping[str, float]):
        self._expected = expected
        self._rules: dict[int, str] = {}
        self._total, self._done, self._began, self._last = 0.0, 0.0, 0.0, 0.0
        self.jobs, self.finished, self.message = 0, 0, ""

    def take(self, event: Event, now: float) -> None:
        """An event, and when it was seen, in seconds."""
        if event["event"] == "run_info":
            counts = {rule: number for rule, number in event["stats"].items() if rule != "total"}
            self.jobs, self._began, self._last = sum(counts.values()), now, now
            self._total = sum(number * self._weight(rule) for rule, number in counts.items())
        elif event["event"] == "job_info":
            self._rules[event["jobid"]] = event["rule_name"]
            self.message = event["rule_msg"] or self.message
        elif event["event"] == "job_finished":
            self.finished += 1
            self._done, self._last = self._done + self._weight(self._rules.get(event["job_id"], "all")), now

    @property
    def share(self) -> float:
        """Of the work, what is done."""
        return min(self._done / self._total, 1.0) if self._total else 0.0

    def seconds_left(self, now: float) -> float | None:
        """At the pace so far; before the first job has ended, as expected, or None."""
        took, prior = self._last - self._began, _PRIOR * self._total if self._expected else 0.0
        if not self._total or self._done + prior <= 0:
            return None
        left = (self._total - self._done) * (took + prior) / (self._done + prior)
        return max(left - (now - self._last), 0.0)

    def _weight(self, rule: str) -> float:
        """Of a rule that was not measured as long as the usual one of those that were."""
        if self._expected:
            usual = sorted(self._expected.values())[len(self._expected) // 2]
            return self._expected.get(rule, usual)
        return _LOADING if rule in STAGES and STAGES[rule].runs_model else 1.0
