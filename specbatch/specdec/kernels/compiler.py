"""What Triton needs of a machine beside its own package: a C compiler, and a cache whose files may be run.

Triton builds small C extensions when it first launches a kernel: its access to the driver, in some versions a launcher
for every kind of call. Here it builds one that does nothing, while nothing has been loaded yet.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import import_module

from specbatch.schemas.errors import ErrorCode, SpecbatchError

_NAME = "specbatch_nothing"
_SOURCE = f"""
#include <Python.h>
static struct PyModuleDef nothing = {{PyModuleDef_HEAD_INIT, "{_NAME}", NULL, -1, NULL}};
PyMODINIT_FUNC PyInit_{_NAME}(void) {{ return PyModule_Create(&nothing); }}
"""
_COMPILERS = ("gcc", "clang")


def check_compiler(device_type: str) -> None:
    """See to it that Triton can build what it launches kernels with; on a CPU nothing is launched and nothing checked.

    Args:
        device_type: torch's word for the device, ``cuda`` or ``cpu``.

    Raises:
        SpecbatchError: JOB_VERSION_SKEW, with what is missing: Triton, a C compiler, Python's headers, or a cache that
            files can be written to and run from.
    """
    if device_type != "cuda":
        return
    try:
        module = import_module("triton.runtime.build")
    except ImportError as error:
        raise _lacking(f"a package that cannot be used here: {error}", "install 'triton>=3.5'") from error
    # Asked first: what was built before comes from the cache, and the next extension would still need a compiler.
    _find_compiler()
    # A name of Triton's own: a version that has another says itself what it lacks, at the first launch.
    build = getattr(module, "compile_module_from_src", None)
    if build is None:
        return
    try:
        build(_SOURCE, _NAME)
    except (subprocess.CalledProcessError, RuntimeError) as error:
        raise _lacking(
            f"a C compiler that works, and the one here failed ({_reason(error)}); its own words stand in the log",
            "install the headers of Python and of the C library (Debian: libc6-dev, python3-dev)",
        ) from error
    except (ImportError, OSError) as error:
        raise _lacking(
            f"a cache to write libraries to and load them from ({_reason(error)})",
            "set TRITON_CACHE_DIR to a folder that can be written and is not mounted noexec",
        ) from error


def _find_compiler() -> None:
    """As Triton looks for it: what ``CC`` names, else one of those that it knows."""
    named = os.environ.get("CC")
    if named is None and not any(map(shutil.which, _COMPILERS)):
        raise _lacking(f"a C compiler, and there is none ({' or '.join(_COMPILERS)})", "install gcc, or set CC to one")
    if named is not None and shutil.which(named) is None:
        raise _lacking(f"a C compiler, and CC={named} is none", "set CC to the path of one, or unset it")


def _lacking(what: str, remedy: str) -> SpecbatchError:
    return SpecbatchError(ErrorCode.JOB_VERSION_SKEW, f"the kernels of this GPU need {what}; {remedy}")


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"exit code {error.returncode}"
    return (str(error).splitlines() or [type(error).__name__])[0]
