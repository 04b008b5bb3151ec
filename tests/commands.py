"""The project's commands as a user types them, in a folder of a test's own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

BASICSR = Path(sys.executable).with_name("basicsr")
TORCHRUN = Path(sys.executable).with_name("torchrun")


def call(folder, *words):
    """Run a command on one thread without a GPU; returns its exit code and what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [str(word) for word in words]
    result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return result.returncode, result.stdout + result.stderr


def torchrun(processes, *program):
    """The words that start basicsr, or another program, in several processes, on a port that nobody uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    return [TORCHRUN, f"--nproc_per_node={processes}", f"--master_port={port}", "--no-python", *(program or [BASICSR])]
