"""Whether the Triton kernels can run on a device, and why not where they cannot.

Nothing here needs Triton: on a machine without it, only this module of the folder and `driver_module` are imported.
"""

import functools
import subprocess
from importlib.util import find_spec

import torch
from torch import Tensor

from model.gpu.driver_module import use_prebuilt

OLDEST_CAPABILITY = (8, 0)
"""Ampere. Turing's matrix instructions know neither bfloat16 nor asynchronous copies."""


def is_available(device: torch.device) -> bool:
    """Whether the kernels run there."""
    return reason_against(device) is None


def status(device: torch.device) -> str:
    """One line for whoever starts the server: which kernels run on the GPU, or why none do."""
    reason = reason_against(device)
    if reason is not None:
        return f"GPU kernels: none, torch's own are used instead: {reason}"
    import triton

    return f"GPU kernels: Triton {triton.__version__}"


@functools.cache
def reason_against(device: torch.device) -> str | None:
    """Why the kernels cannot run there; None where they can. Found out once a process, by running one."""
    if device.type != "cuda":
        return f"they are for CUDA devices, not for {device.type}"
    if torch.version.cuda is None:
        return "this torch was not built for NVIDIA's GPUs"
    if find_spec("triton") is None:
        return "triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        return f"{device} has compute capability {_dotted(capability)}, they need {_dotted(OLDEST_CAPABILITY)}"
    return _failed_trial(device)


@functools.cache
def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors; 1 for a CPU, where Triton's interpreter runs one program after the other."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def as_bytes(x: Tensor) -> Tensor:
    """The same memory as bytes where it holds float8, which the kernels take apart themselves."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


def _failed_trial(device: torch.device) -> str | None:
    """What went wrong with one small kernel: Triton needs a C compiler or what it left, the driver its code."""
    from model.gpu.fused import silu_mul

    use_prebuilt()
    try:
        with torch.cuda.device(device):
            silu_mul(torch.zeros(1, 32, device=device))
            torch.cuda.synchronize(device)
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as err:
        first_line = str(err).strip().partition("\n")[0]
        return f"Triton cannot run a kernel ({first_line or type(err).__name__})"
    return None


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
