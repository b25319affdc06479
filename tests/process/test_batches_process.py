"""Requests that run together because the operator lets the first one wait."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from serving_models import CLS
from serving_site import found, open_site

pytestmark = pytest.mark.process


def test_requests_that_come_apart_run_together_where_the_first_may_wait(tmp_path: Path) -> None:
    """Two at first, as nothing is known yet of larger numbers; the second one ends the waiting."""
    keys = found(tmp_path / "berlin")
    with open_site(keys, tmp_path / "blobs") as site:
        site.worker_options = ("--batch-delay-s", "30", "--batch-preferred", "2", "4")
        site.start_worker()
        site.serve("cls", CLS)
        means: dict[int, float] = {}

        def ask(number: int) -> None:
            given = triton.InferInput("x", [1, 3, 48, 192], "FP32")
            given.set_data_from_numpy(np.full((1, 3, 48, 192), number / 10, np.float32))
            with triton.InferenceServerClient(f"127.0.0.1:{site.http_port}") as client:
                result = client.infer("cls", [given])
            means[number] = float(
                result.as_numpy(result.get_response()["outputs"][0]["name"])[0, 0]
            )

        asking = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(20)
        assert len(means) == 2
        assert means[0] != means[1]
        (figures,) = json.loads(site.get("/v2/models/cls/stats")[2])["model_stats"]
        assert (figures["inference_count"], figures["execution_count"]) == (2, 1)
