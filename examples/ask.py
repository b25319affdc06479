"""Ask a model through this site, wherever in the mesh it is served: the ordinary Triton client.

Run: pip install 'tritonclient[http]' numpy; python ask.py [127.0.0.1:8000]
"""

import sys

import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8000")
image = triton.InferInput("image", [1, 784], "FP32")
image.set_data_from_numpy(np.zeros((1, 784), np.float32))
result = client.infer("digits", [image])
print(result.as_numpy("logits").argmax(), "says", result.get_response()["parameters"]["served_by"])
client.close()
