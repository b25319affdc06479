import subprocess
import sys

LOADED = """
import ssl
from pathlib import Path

original = ssl.create_default_context
from agent.drivers.aiohttp_library import aiohttp

assert ssl.create_default_context is original
print(len(aiohttp.connector._SSL_CONTEXT_VERIFIED.get_ca_certs()))
"""


def test_importing_aiohttp_loads_no_certificate_authorities() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED], check=True, capture_output=True, text=True, timeout=30
    )
    assert done.stdout.strip() == "0"


def test_the_daemon_imports_it_first() -> None:
    code = "import agent.daemon.run, aiohttp; c = aiohttp.connector._SSL_CONTEXT_VERIFIED; print(c.get_ca_certs())"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
