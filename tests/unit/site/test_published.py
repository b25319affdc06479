"""Models that jobs made, in the order in which the jobs were asked for."""

from types import SimpleNamespace

from sites_of_one_cluster import World, a_job, model

from agent.foundation.ids import Digest
from agent.site.published import newest, published, version_name


def test_the_newest_job_counts_however_ids_sort() -> None:
    world = World()
    one = world.add()
    machines = []
    for name in ("job-z", "job-a"):
        job = a_job(name, one.site.me)
        world.submit(one, job)
        value = SimpleNamespace(
            exported=Digest(name.encode() * 6 + b"12"), exported_bytes=3, round=1
        )
        machines.append(SimpleNamespace(job=_publishing(job), value=value))
    every = published(machines, one.site.catalog, lambda _: None)  # type: ignore[arg-type]
    assert [version.version for version, _ in every] == ["job-z", "job-a"]
    assert [version.version for version, _ in newest(every)] == ["job-a"]


def _publishing(job: object) -> object:
    from dataclasses import replace  # noqa: PLC0415

    return replace(job, publish="m")  # type: ignore[type-var]


def test_a_version_name_is_the_jobs_id() -> None:
    assert version_name("digits-12345678") == "digits-12345678"
    assert len(version_name("x" * 80)) == 64
    assert model().name == "m"
