"""What an operator writes to ask for a training job (``job.toml``), checked whole.

Rule: every problem is reported at once, and an unknown key names the nearest known one.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from agent.api.names import LABEL, NAME
from agent.foundation.errors import UsageError
from agent.foundation.ids import JobId, SiteId
from agent.wire.documents import RANGES_MAX, Job, Region

JOB_NAME_CHARS_MAX = 48
"""A job's id appends 9 characters, and its published model's version must stay a name."""
REGION = re.compile(r"\*|[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LIST_MAX = 1024
"""As Job.deploy_sites."""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A training job as asked for; the site adds the id and the committee."""

    name: str
    """Begins the job's id."""
    recipe: str
    """A shipped recipe, e.g. ``mnist-2nn``."""
    dataset: str
    """The name to which each site's operator binds local data."""
    rounds: int = 10
    epochs: int = 1
    """Local epochs a round."""
    batch: int = 32
    learning_rate: float = 0.05
    sites_min: int = 1
    """A round is not committed with fewer updates."""
    publish: str = ""
    """Name under which the exported model is published; empty = do not publish."""
    residency: tuple[str, ...] = ()
    """Jurisdictions in which parameters and updates may be held; empty = anywhere."""
    deploy_sites: tuple[str, ...] = ()
    """Sites that serve the published model; empty = every site allowed by ``residency``."""
    seed: int = 0
    round_timeout_s: float = 120.0
    is_float_mean: bool = False
    """Sum updates in float32 instead of exactly: faster for large models."""
    staleness_max: int = 0
    """An update that came too late for its round counts in one of so many later ones, for less."""
    outer: str = "none"
    """What is made of a round's mean step: none, momentum, nesterov, adam or yogi."""
    outer_rate: float = 1.0
    outer_momentum: float = 0.9
    outer_second: float = 0.99
    """How much of the mean square step is kept from round to round (adam, yogi)."""
    outer_floor: float = 1e-3
    """What is added to its root (adam, yogi)."""
    regions: tuple[str, ...] = ()
    """Regions that run rounds of their own, each counted as one; ``*`` = every one with two sites."""
    region_sites_min: int = 1
    """A region's round is not committed with fewer updates."""
    local_rounds_max: int = 0
    """So many rounds a region that is cut off goes on alone."""
    ranges: int = 1
    """So many sites make a round's mean together, each of a part of the parameters."""
    correction: str = "none"
    """What keeps sites with different data from drifting apart: none or scaffold."""

    def job(
        self,
        *,
        identifier: JobId,
        committee: tuple[SiteId, ...],
        regions: tuple[Region, ...] = (),
    ) -> Job:
        """The document's body, with what only the site can add."""
        return Job(
            id=identifier,
            recipe=self.recipe,
            dataset=self.dataset,
            committee=committee,
            rounds=self.rounds,
            epochs=self.epochs,
            batch=self.batch,
            learning_rate=self.learning_rate,
            seed=self.seed,
            sites_min=self.sites_min,
            round_timeout_s=self.round_timeout_s,
            publish=self.publish,
            residency=self.residency,
            deploy_sites=self.deploy_sites,
            is_float_mean=self.is_float_mean,
            staleness_max=self.staleness_max,
            outer=self.outer,  # type: ignore[arg-type]  # one of its words, or the codec refuses it
            outer_rate=self.outer_rate,
            outer_momentum=self.outer_momentum,
            outer_second=self.outer_second,
            outer_floor=self.outer_floor,
            regions=regions,
            region_sites_min=self.region_sites_min,
            local_rounds_max=self.local_rounds_max,
            ranges=self.ranges,
            correction=self.correction,  # type: ignore[arg-type]  # as outer
        )


def _name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError("a name: lower-case letters, digits and . _ - (at most 64)")
    return value


def _job_name(value: Any) -> str:
    if len(_name(value)) > JOB_NAME_CHARS_MAX:
        raise ValueError(f"a name of at most {JOB_NAME_CHARS_MAX} characters")
    return str(value)


def _name_or_empty(value: Any) -> str:
    return "" if value == "" else _name(value)


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return check


def _number(low: float, high: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        # type(): True is an int to isinstance. JSON and TOML both can spell NaN.
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return float(value)

    return check


def _yes_or_no(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def _one_of(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            raise ValueError("one of " + ", ".join(words))
        return str(value)

    return check


def _list(pattern: re.Pattern[str], most: int, of: str) -> Callable[[Any], tuple[str, ...]]:
    def check(value: Any) -> tuple[str, ...]:
        if (
            not isinstance(value, list)
            or len(value) > most
            or not all(isinstance(item, str) and pattern.fullmatch(item) for item in value)
        ):
            raise ValueError(f"a list of at most {most} {of}")
        return tuple(dict.fromkeys(value))

    return check


# The bounds are those of ``agent.wire.documents.Job``; a test compares them.
_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "name": _job_name,
    "recipe": _name,
    "dataset": _name,
    "rounds": _whole(1, 10_000),
    "epochs": _whole(1, 1000),
    "batch": _whole(1, 65_536),
    "learning_rate": _number(1e-9, 100.0),
    "sites_min": _whole(1, 10_000),
    "publish": _name_or_empty,
    "residency": _list(LABEL, 64, 'jurisdictions such as "DE"'),
    "deploy_sites": _list(NAME, LIST_MAX, "site names"),
    "seed": _whole(0, 2**63 - 1),
    "round_timeout_s": _number(1.0, 86_400.0),
    "is_float_mean": _yes_or_no,
    "staleness_max": _whole(0, 64),
    "outer": _one_of("none", "momentum", "nesterov", "adam", "yogi"),
    "outer_rate": _number(1e-9, 100.0),
    "outer_momentum": _number(0.0, 0.99999),
    "outer_second": _number(0.0, 0.99999),
    "outer_floor": _number(1e-9, 1.0),
    "regions": _list(REGION, 64, 'regions such as "north", or "*"'),
    "region_sites_min": _whole(1, 10_000),
    "local_rounds_max": _whole(0, 1000),
    "ranges": _whole(1, RANGES_MAX),
    "correction": _one_of("none", "scaffold"),
}


_OF_REGIONS = {"region_sites_min", "local_rounds_max"}
_OF_OUTER = {"outer_rate", "outer_momentum", "outer_second", "outer_floor"}


def parse_job_spec(raw: Mapping[str, Any], lines: Mapping[str, int] | None = None) -> JobSpec:
    """Check every key of ``raw`` (decoded TOML or JSON); ``lines`` says where each stands.

    Raises:
        UsageError: with all problems, one a line.
    """
    problems = []
    values: dict[str, Any] = {}
    known_lines = lines or {}
    for key, value in raw.items():
        where = f"line {known_lines[key]}: " if key in known_lines else ""
        check = _CHECKS.get(key)
        if check is None:
            near = difflib.get_close_matches(key, _CHECKS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(_CHECKS)
            problems.append(f"{where}unknown key {key!r}: {hint}")
            continue
        try:
            values[key] = check(value)
        except ValueError as error:
            problems.append(f"{where}{key} = {value!r}: expected {error}")
    if raw.get("outer", "none") == "none" and (idle := sorted(raw.keys() & _OF_OUTER)):
        problems.append(f"{idle[0]} does nothing without outer, e.g. outer = 'momentum'")
    if not raw.get("regions") and (idle := sorted(raw.keys() & _OF_REGIONS)):
        problems.append(f"{idle[0]} does nothing without regions, e.g. regions = ['*']")
    if values.get("local_rounds_max") and not values.get("staleness_max"):
        problems.append("local_rounds_max needs staleness_max: such rounds count late")
    if values.get("correction", "none") != "none":
        problems += [
            f"{key} does not go with correction: control variates are of one round and of one site"
            for key in ("regions", "staleness_max")
            if values.get(key)
        ]
    problems += [
        f"{column.name} is missing"
        for column in fields(JobSpec)
        if column.default is MISSING and column.name not in raw
    ]
    if problems:
        raise UsageError(
            f"the job has {len(problems)} problem" + ("s" if len(problems) > 1 else ""),
            why="\n".join(problems),
            mend="correct them and submit the job again",
        )
    return JobSpec(**values)
