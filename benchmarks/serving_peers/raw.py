"""The limit: ``session.run`` in one process, no server. Prints one JSON object.

``{model: {"p50_us", "rps1", "rps2" (two threads), "cpu_ms"}}``
"""

import json
import statistics
import sys
import threading
import time

from work import MODELS, feeds, session


def measure(model: str, seconds: float) -> dict[str, float]:
    one, given = session(model), feeds(model)
    for _ in range(5):
        one.run(None, given)
    times: list[float] = []
    cpu, end = time.process_time(), time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        one.run(None, given)
        times.append(time.perf_counter() - began)
    cpu = time.process_time() - cpu
    counts = [0, 0]

    def loop(index: int) -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            one.run(None, given)
            counts[index] += 1

    threads = [threading.Thread(target=loop, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "p50_us": statistics.median(times) * 1e6,
        "rps1": len(times) / sum(times),
        "rps2": sum(counts) / seconds,
        "cpu_ms": cpu / len(times) * 1e3,
    }


print(json.dumps({model: measure(model, float(sys.argv[1])) for model in MODELS}))
