"""Signatures, their JSON forms and the datatype table."""

import json

import pytest

from agent.foundation.errors import Malformed
from agent.serving.datatypes import DATATYPES
from agent.serving.signature import FREE, Signature, TensorSpec, signature_of_metadata

SIGNATURE = Signature(
    "m",
    "3",
    (TensorSpec("x", DATATYPES["FP32"], (FREE, 2)),),
    (TensorSpec("label", DATATYPES["BYTES"], ()),),
)


def test_metadata_is_the_protocols_and_reads_back() -> None:
    assert json.loads(SIGNATURE.metadata()) == {
        "name": "m",
        "versions": ["3"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "label", "datatype": "BYTES", "shape": []}],
    }
    assert signature_of_metadata(SIGNATURE.metadata()) == SIGNATURE


def test_config_words_types_as_triton_does() -> None:
    config = json.loads(SIGNATURE.config())
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 2]}]
    assert config["output"][0]["data_type"] == "TYPE_STRING"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": "m", "versions": []}', "7"])
def test_other_texts_are_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        signature_of_metadata(text)


def test_other_versions_are_named_after_the_one_that_is_described() -> None:
    one = Signature("m", "3", (), (), others=("1", "2"))
    assert one.description()["versions"] == ["3", "1", "2"]
    assert one.configuration()["version_policy"] == {"specific": {"versions": ["3", "1", "2"]}}
    assert signature_of_metadata(one.metadata()) == Signature("m", "3", (), ())
