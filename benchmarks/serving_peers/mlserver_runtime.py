"""MLServer ships no ONNX Runtime: the smallest runtime of one's own. It speaks JSON only."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from work import session


class OnnxModel(MLModel):
    async def load(self) -> bool:
        self._session = session(self.name)
        self._names = [output.name for output in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given = {
            one.name: NumpyCodec.decode_input(one).astype(np.float32, copy=False)
            for one in payload.inputs
        }
        found = self._session.run(None, given)
        outputs = [
            NumpyCodec.encode_output(name, array)
            for name, array in zip(self._names, found, strict=True)
        ]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)
