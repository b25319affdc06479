"""The datatype table agrees with ONNX Runtime's names and integer ranges."""

from agent.serving.datatypes import DATATYPES, datatype_of_onnx


def test_integers_have_their_range() -> None:
    assert (DATATYPES["UINT8"].low, DATATYPES["UINT8"].high) == (0, 255)
    assert (DATATYPES["INT16"].low, DATATYPES["INT16"].high) == (-32768, 32767)
    assert DATATYPES["UINT64"].high == 2**64 - 1


def test_every_datatype_has_one_onnx_type() -> None:
    for datatype in DATATYPES.values():
        assert datatype_of_onnx(f"tensor({datatype.onnx})") is datatype
    assert datatype_of_onnx("tensor(complex64)") is None
    assert datatype_of_onnx("sequence(tensor(float))") is None
