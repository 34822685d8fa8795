"""Reads what a run's bits can depend on besides its code: versions, builds, hardware, environment variables.

Each function returns plain values and asks for what is in force, not for what was requested. Nothing here starts an
accelerator: that would settle cuBLAS's workspace and forbid to fork.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

PACKAGES: Final = (
    "repro-callbacks",
    "lightning",
    "pytorch-lightning",
    "monai",
    "numpy",
    "scipy",  # resampling and smoothing in MONAI's transforms
    "scikit-image",  # labels and morphology in MONAI's transforms
    "nibabel",  # what a reader returns is what is trained on
    "itk",
    "SimpleITK",
    "pillow",
    "torchvision",
    "torchio",
    "torchmetrics",  # a metric decides which checkpoint is the best, and when to stop
    "pytorch-ignite",
    "triton",  # compiles the kernels of torch.compile
)
"""The packages whose version is recorded: each computes, or decides, something of a usual training."""

ENVIRONMENT_VARIABLES: Final = {
    "OMP_NUM_THREADS": "a sum over more threads is added up in another order",
    "OMP_DYNAMIC": "lets OpenMP take fewer threads than asked for, by the load of the machine",
    "OMP_SCHEDULE": "decides which thread adds what",
    "KMP_DETERMINISTIC_REDUCTION": "fixes the order in which Intel's OpenMP adds the sums of threads",
    "MKL_NUM_THREADS": "a sum over more threads is added up in another order",
    "MKL_DYNAMIC": "lets MKL take fewer threads than asked for, by the load of the machine",
    "MKL_CBWR": "MKL's conditional numerical reproducibility: fixes its code path",
    "MKL_ENABLE_INSTRUCTIONS": "limits the instructions that MKL's kernels use",
    "OPENBLAS_NUM_THREADS": "a sum over more threads is added up in another order",
    "OPENBLAS_CORETYPE": "chooses OpenBLAS's kernels",
    "NPY_DISABLE_CPU_FEATURES": "limits the instructions that NumPy's kernels use",
    "NPY_ENABLE_CPU_FEATURES": "limits the instructions that NumPy's kernels use",
    "ATEN_CPU_CAPABILITY": "chooses torch's CPU kernels",
    "ONEDNN_MAX_CPU_ISA": "limits the instructions that oneDNN's kernels use",
    "DNNL_MAX_CPU_ISA": "limits the instructions that oneDNN's kernels use",
    "ONEDNN_DEFAULT_FPMATH_MODE": "lets oneDNN compute in a lower precision",
    "DNNL_DEFAULT_FPMATH_MODE": "lets oneDNN compute in a lower precision",
    "CUBLASLT_WORKSPACE_SIZE": "decides which kernels cuBLASLt can use",
    "NVIDIA_TF32_OVERRIDE": "turns TF32 off in every NVIDIA library",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "lets cuBLAS compute in TF32",
    "TORCH_CUDNN_V8_API_DISABLED": "chooses the interface by which torch asks cuDNN for its kernels",
    "NCCL_ALGO": "decides the order in which ranks are added up",
    "NCCL_PROTO": "decides the order in which ranks are added up",
    "PYTORCH_ENABLE_MPS_FALLBACK": "lets operators that MPS lacks run on the CPU",
}
"""The environment variables that can change bits, and how. Those that are set are recorded.

``CUBLAS_WORKSPACE_CONFIG`` and ``PYTHONHASHSEED`` are among the flags."""


@functools.cache
def versions() -> dict[str, str | None]:
    """Return the versions of Python, torch, the accelerator's libraries and :data:`PACKAGES`; None: not installed."""
    cudnn_is_there = torch.backends.cudnn.is_available()  # type: ignore[no-untyped-call]
    cudnn = torch.backends.cudnn.version() if cudnn_is_there else None  # type: ignore[no-untyped-call]
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": None if cudnn is None else str(cudnn),
        "nccl": _nccl(),
    }
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


@functools.cache
def build() -> dict[str, str | None]:
    """Return how torch and NumPy were built, where that changes kernels: BLAS, MKL, oneDNN, compiler options."""
    # The capability line tells of this machine, not of the build; hardware() has it.
    lines = [line for line in torch.__config__.show().splitlines() if "CPU capability usage" not in line]
    text = "\n".join(lines)
    blas: Any = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "torch_config": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
        "torch_commit": str(torch.version.git_version),
        "blas": _first(r"\bBLAS_INFO=(\w+)", text),
        "mkl": _first(r"Math Kernel Library Version (\S+)", text),
        "onednn": _first(r"MKL-DNN v(\S+)", text),
        "numpy_blas": f"{blas['name']} {blas['version']}",
    }


@functools.cache
def system() -> dict[str, str | None]:
    """Return the operating system, its kernel, the C library and the machine's architecture."""
    libc = " ".join(platform.libc_ver()).strip()
    return {
        "os": platform.system(),
        "kernel": platform.release(),
        "libc": libc or None,
        "machine": platform.machine(),
    }


def hardware() -> dict[str, str | int | None]:
    """Return the CPU, the instructions that torch and NumPy use on it, and the accelerators that are in sight."""
    kinds, count = accelerators()
    return {**_cpu(), "accelerators": ", ".join(kinds) or None, "accelerator_count": count}


def accelerators() -> tuple[list[str], int]:
    """Return the models of the accelerators in sight, each once, and their number, without starting any.

    A CUDA device that has not started can't be asked for its name; the driver's files are read instead, which list
    every card of the machine. Without those files its name is "CUDA device, not started".
    """
    count = torch.cuda.device_count()  # not is_available(): it forbids CUDA to processes that are forked later
    if count:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return sorted({torch.cuda.get_device_name(index) for index in range(count)}), count
        files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        models = {_first(r"(?m)^Model:\s*(.+?)\s*$", file.read_text()) for file in files}
        return sorted(filter(None, models)) or ["CUDA device, not started"], count
    if torch.backends.mps.is_available():
        return [f"MPS of {_cpu()['cpu']}"], 1
    if torch.xpu.is_available():
        count = torch.xpu.device_count()
        if torch.xpu.is_initialized():  # type: ignore[no-untyped-call]
            return sorted({torch.xpu.get_device_name(index) for index in range(count)}), count
        return ["XPU device, not started"], count
    return [], 0


def variables() -> dict[str, str]:
    """Return those of :data:`ENVIRONMENT_VARIABLES` that are set."""
    return {name: os.environ[name] for name in ENVIRONMENT_VARIABLES if name in os.environ}


@functools.cache
def _cpu() -> dict[str, str | int | None]:
    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpu_model(),
        "cpu_count": len(affinity(0)) if affinity else os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "numpy_simd": " ".join([*simd.get("baseline", []), *simd.get("found", [])]),
    }


def _cpu_model() -> str | None:
    """Name the CPU's model. A hypervisor may hide the name, so on x86 its family and model number stand beside it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        processor = cpuinfo.read_text().split("\n\n", 1)[0]
        fields = {
            key.strip(): value.strip() for key, _, value in (line.partition(":") for line in processor.split("\n"))
        }
        if "model name" in fields:
            family, model = fields.get("cpu family"), fields.get("model")
            return fields["model name"] + (f" (family {family}, model {model})" if family else "")
        if "CPU part" in fields:  # ARM has numbers only
            return f"{platform.machine()} implementer {fields.get('CPU implementer')} part {fields['CPU part']}"
    if sys.platform == "darwin":
        question = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(question, capture_output=True, text=True, timeout=1, check=True).stdout.strip()
    return platform.processor() or None


def _nccl() -> str | None:
    if not (torch.distributed.is_available() and torch.distributed.is_nccl_available()):
        return None
    version = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return ".".join(map(str, version))


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match.group(1) if match else None
