"""LitServe, its smallest: one API process, one worker a model. The binary form in a multipart body."""

import sys
from typing import Any

import litserve
import orjson
from starlette.responses import Response
from work import MODELS, decode, encode, session


class Api(litserve.LitAPI):
    def __init__(self, model: str) -> None:
        super().__init__(api_path=f"/v2/models/{model}/infer")
        self.model = model

    def setup(self, device: str) -> None:
        del device
        self.session = session(self.model)
        self.names = [output.name for output in self.session.get_outputs()]

    def decode_request(self, request):  # an annotation would change what LitServe passes
        return decode(request["f"].file.read(), int(request["h"]), orjson.loads)[0]

    def predict(self, x: Any) -> Any:
        return self.session.run(None, x)

    def encode_response(self, output: Any) -> Response:
        length, answer = encode(self.model, self.names, output, orjson.dumps, is_binary=True)
        headers = {"Inference-Header-Content-Length": str(length)}
        return Response(answer, media_type="application/octet-stream", headers=headers)


if __name__ == "__main__":
    server = litserve.LitServer(
        [Api(model) for model in MODELS], accelerator="cpu", workers_per_device=1
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False,
        log_level="error", access_log=False,
    )  # fmt: skip
