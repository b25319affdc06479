"""PyTriton: the real Triton server in front, a Python function behind shared memory."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from work import MODELS, session


def serve(one: Any) -> Callable[[Any], Any]:
    names = [output.name for output in one.get_outputs()]
    return lambda requests: [
        dict(zip(names, one.run(None, dict(request.data.items())), strict=True))
        for request in requests
    ]


port = int(sys.argv[1])
config = TritonConfig(
    http_address="127.0.0.1", http_port=port, grpc_port=port + 1, metrics_port=port + 2
)
with Triton(config=config) as triton:
    for model, shapes in MODELS.items():
        loaded = session(model)
        triton.bind(
            model_name=model,
            infer_func=serve(loaded),
            inputs=[Tensor(name=n, dtype=np.float32, shape=s) for n, s in shapes.items()],
            outputs=[
                Tensor(name=output.name, dtype=np.float32, shape=(-1,) * len(output.shape))
                for output in loaded.get_outputs()
            ],
            config=ModelConfig(batching=False),
            strict=False,
        )
    triton.serve()
