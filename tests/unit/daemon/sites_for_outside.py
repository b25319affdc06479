"""A job for tests of the daemon's effects."""

from agent.foundation.ids import JobId, SiteId
from agent.wire.documents import Job

JOB = Job(JobId("j-1"), "mnist-2nn", "d", (SiteId(b"\1" * 32),), 1, 1, 8, 0.1, 1, 1, 60.0, "", ())
