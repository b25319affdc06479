"""One question to magika at a whole site, and by whom it was answered."""

import numpy as np
import tritonclient.http as triton
from daemon_cluster import Daemon


def served_by(site: Daemon, residency: str = "") -> str:
    """The name of the site that answered; ``InferenceServerException`` if nobody did."""
    with triton.InferenceServerClient(site.http, network_timeout=20) as client:
        given = triton.InferInput("bytes", [1, 2048], "INT32")
        given.set_data_from_numpy(np.zeros((1, 2048), np.int32))
        headers = {"Atoll-Residency": residency} if residency else {}
        answer = client.infer("magika", [given], headers=headers)
        return str(answer.get_response()["parameters"]["served_by"])
