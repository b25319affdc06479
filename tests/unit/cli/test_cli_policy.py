import json
from pathlib import Path

import pytest

from agent.cli.main import main

CASES = '[case.a]\nsite = "DE"\nexpect = "allow"\nrequest = ["DE"]\n'


def run(path: Path, *options: str) -> int:
    return main(["policy", "test", str(path), *options])


def test_cases_that_hold_end_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    path.write_text(CASES)
    assert run(path) == 0
    assert "All 1 cases" in capsys.readouterr().out


def test_a_case_that_does_not_hold_ends_with_1_and_its_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(CASES.replace('site = "DE"', 'site = "US"'))
    assert run(path) == 1
    assert "only in DE" in capsys.readouterr().out
    assert run(path, "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["wrong"], answer["cases"][0]["answer"]) == (1, "deny")


def test_policies_of_a_catalog_file_hold_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases, policies = tmp_path / "c.toml", tmp_path / "p.toml"
    cases.write_text(CASES.replace('request = ["DE"]', 'name = "scan-hip"'))
    policies.write_text('[policy.scans]\nmodels = ["scan-*"]\nanswer_in = ["FR"]\n')
    assert main(["policy", "test", str(cases)]) == 0
    assert main(["policy", "test", str(policies), str(cases)]) == 1
    assert "policy scans lets it be answered only in FR" in capsys.readouterr().out
    policies.write_text('[deployment.m]\nversion = "1"\n')
    assert main(["policy", "test", str(policies), str(cases)]) == 1
    assert "p.toml has no policies" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"\xff", b"[case]\n", b"#" * (4 << 20) + b"##"])
def test_a_file_that_cannot_be_used_is_an_error(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.toml"
    if content is not None:
        path.write_bytes(content)
    assert run(path) == 1
    assert str(path) in capsys.readouterr().err
