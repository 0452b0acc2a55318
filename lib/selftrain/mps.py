"""NVIDIA's Multi-Process Service: kernels of several processes run on one device at the same time instead of in turns."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)
CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"


@contextlib.contextmanager
def shared_device(wanted: bool = True) -> Iterator[dict[str, str]]:
    """Run the service for the length of a with block; yields the environment variables of its clients, none where it does not run.

    The daemon belongs to this user, is found only by processes that carry the variables, and changes no setting of the device. One that
    runs already (CUDA_MPS_PIPE_DIRECTORY is set) is used and left alone. A daemon that does not start costs a warning.
    """
    if not wanted or shutil.which(CONTROL) is None:
        yield {}
        return
    if os.environ.get(PIPES):
        yield {PIPES: os.environ[PIPES]}
        return
    with tempfile.TemporaryDirectory(prefix="mps", ignore_cleanup_errors=True) as folder:
        clients = {PIPES: str(Path(folder) / "pipes"), LOGS: str(Path(folder) / "logs")}
        for path in clients.values():
            Path(path).mkdir()
        env = {**os.environ, **clients}
        try:
            started = subprocess.run([CONTROL, "-d"], env=env, capture_output=True, text=True, timeout=30)
            failed = started.returncode and (started.stderr or started.stdout or f"exit {started.returncode}").strip()
        except (OSError, subprocess.TimeoutExpired) as error:
            failed = str(error)
        if failed:
            log.warning("%s did not start (%s); processes take turns on the device", CONTROL, failed.splitlines()[0])
            yield {}
            return
        try:
            yield clients
        finally:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run([CONTROL], input="quit -t 10\n", env=env, capture_output=True, text=True, timeout=60)
