"""NVIDIA's Multi-Process Service: kernels of several processes run on one device at the same time instead of in turns."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)
CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"


CLIENT = [sys.executable, "-c", "import torch; torch.ones(1, device='cuda').item()"]  # a process that needs the device


@contextlib.contextmanager
def shared_device(wanted: bool = True) -> Iterator[dict[str, str]]:
    """Run the service for the length of a with block; yields the environment variables of its clients, none where it does not run.

    The daemon belongs to this user, is found only by processes that carry the variables, and changes no setting of the device. One that
    runs already (CUDA_MPS_PIPE_DIRECTORY is set) is used and left alone; where the service is not wanted, clients are kept from it.
    A service that does not start, or that a first client cannot use, costs a warning.
    """
    with tempfile.TemporaryDirectory(prefix="mps", ignore_cleanup_errors=True) as folder:
        clients = {PIPES: str(Path(folder) / "pipes"), LOGS: str(Path(folder) / "logs")}
        if not wanted:
            yield {PIPES: clients[PIPES]}  # nobody listens there
            return
        if shutil.which(CONTROL) is None or os.environ.get(PIPES):
            yield {name: os.environ[name] for name in (PIPES, LOGS) if name in os.environ}
            return
        for path in clients.values():
            Path(path).mkdir()
        # the daemon numbers the devices that it sees anew, so it must see them all: CUDA_VISIBLE_DEVICES is for its clients
        daemon = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | clients
        try:
            failed = _failure([CONTROL, "-d"], daemon) or _failure(CLIENT, {**os.environ, **clients})
            if failed:
                log.warning("NVIDIA's service did not start (%s); processes take turns on the device", failed)
            yield {} if failed else clients
        finally:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run([CONTROL], input="quit -t 10\n", env=daemon, capture_output=True, text=True, timeout=60)


def _failure(command: list[str], env: dict[str, str]) -> str | None:
    """Why a command failed, in one line; None where it did not. Its output goes to a file, since a daemon keeps what it is given."""
    with tempfile.TemporaryFile("w+") as said:
        try:
            code = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=60).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error).splitlines()[0]
        said.seek(0)
        lines = said.read().strip().splitlines()
    return (lines[-1] if lines else f"exit {code}") if code else None
