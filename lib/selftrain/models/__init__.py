"""Models by name: embedded ones that need no hub, local folders, and hub names, behind one `load`."""

from selftrain.models.embedded import EMBEDDED, Embedded, ModelError, Package
from selftrain.models.fetch import fetch
from selftrain.models.loading import Loaded, embedder_path, load
from selftrain.models.resolving import Resolved, resolve
from selftrain.models.selftest import VerifyReport, verify

__all__ = [
    "EMBEDDED",
    "Embedded",
    "Loaded",
    "ModelError",
    "Package",
    "Resolved",
    "VerifyReport",
    "embedder_path",
    "fetch",
    "load",
    "resolve",
    "verify",
]
