"""An accelerator is believed only after it has given the CPU's answers."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from onnx import parser

from agent.workers.inference_providers import open_session
from agent.workers.inference_session import CPU_PROVIDER, LoadRefused, ModelSession
from agent.workers.inference_tensors import Array

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
MODEL: bytes = parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 13]> g (float[N,4] x) => (float[N,4] y) { y = Softmax(x) }'
).SerializeToString()


class Accelerated:
    """A CPU session that says it is an accelerator's, and errs as told."""

    def __init__(self, inner: ModelSession, provider: str, error: str) -> None:
        self.inner, self.error = inner, error
        self.signature = inner.signature
        self.providers = (CPU_PROVIDER,) if error == "falls back" else (provider, CPU_PROVIDER)

    def run_plain(self, feeds: dict[str, Array]) -> list[Array]:
        (found,) = self.inner.run_plain(feeds)
        match self.error:
            case "wrong":
                return [np.flip(found, axis=1)]
            case "rough":
                return [found * 1.001]
            case "not finite":
                return [np.full_like(found, np.nan)]
            case "shape":
                return [found[:0]]
            case "fails":
                raise RuntimeError("no kernel image is available for execution on the device")
            case _:
                return [found]


class Machine:
    """Builds sessions as a machine with such accelerators would."""

    def __init__(self, **errors: str) -> None:
        self.errors = errors
        self.built: list[str] = []

    def build(self, model: bytes, name: str, version: str, providers: Sequence[str]) -> Any:
        (provider,) = providers
        self.built.append(provider)
        inner = ModelSession(model, name, version, ())
        if provider == CPU_PROVIDER:
            return inner
        if (error := self.errors[provider]) == "refuses":
            raise LoadRefused("the driver is too old")
        return Accelerated(inner, provider, error)

    def open(self, *wanted: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        session, passed = open_session(
            MODEL, "m", "1", wanted, build=self.build, available={*self.errors, CPU_PROVIDER}
        )
        return cast("Any", session).providers, passed


@pytest.mark.parametrize("error", ["", "rough"])
def test_one_that_agrees_with_the_cpu_is_used(error: str) -> None:
    providers, passed = Machine(**{CUDA: error}).open(CUDA, CPU_PROVIDER)
    assert (providers[0], passed) == (CUDA, ())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("wrong", "output 'y' differs from the CPU's by"),
        ("not finite", "not finite where the CPU's is"),
        ("shape", "another shape"),
        ("fails", "no kernel image is available"),
        ("refuses", "the driver is too old"),
        ("falls back", f"fell back to {CPU_PROVIDER} silently"),
    ],
)
def test_one_that_is_wrong_is_passed_over_and_the_reason_is_told(error: str, told: str) -> None:
    providers, passed = Machine(**{CUDA: error}).open(CUDA, CPU_PROVIDER)
    assert providers == (CPU_PROVIDER,)
    (reason,) = passed
    assert reason.startswith(f"{CUDA}: ")
    assert told in reason


def test_the_next_one_in_the_profiles_order_gets_its_turn() -> None:
    machine = Machine(**{TENSORRT: "wrong", CUDA: ""})
    providers, passed = machine.open(TENSORRT, CUDA, CPU_PROVIDER)
    assert providers[0] == CUDA
    assert len(passed) == 1
    assert machine.built == [TENSORRT, CPU_PROVIDER, CUDA], "the CPU's session is made once"


def test_what_the_build_lacks_is_not_tried_and_what_follows_the_cpu_is_not_wanted() -> None:
    machine = Machine()
    providers, passed = machine.open(TENSORRT, CPU_PROVIDER, CUDA)
    assert providers == (CPU_PROVIDER,)
    assert passed == (f"{TENSORRT}: this build of ONNX Runtime has none",)
    assert machine.built == [CPU_PROVIDER]


def test_a_session_that_fell_back_to_the_cpu_is_not_built_twice() -> None:
    machine = Machine(**{CUDA: "falls back"})
    machine.open(CUDA)
    assert machine.built == [CUDA]


def test_the_real_runtime_without_a_gpu_says_so() -> None:
    session, passed = open_session(MODEL, "m", "1", (CUDA,))
    assert session.providers == (CPU_PROVIDER,)
    assert len(passed) == 1
    assert CUDA in passed[0]
