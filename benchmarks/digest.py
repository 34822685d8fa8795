"""Throughput of the digest, beside a plain read of the same memory and other hashes: ``python -m benchmarks.digest``.

On the CPU, and on a CUDA device where there is one. Every way is timed in turn with the plain read; medians.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from monai.networks.nets import UNet

from benchmarks.timing import machine, paired
from repro_callbacks.fingerprint.digest import digest_many, named_state

WORDS = 1 << 24


def measure(name: str, size: int, ours: Callable[[], Any], plain: Callable[[], Any], rounds: int = 11) -> None:
    """Print how many GB/s one way reads, beside the plain read."""
    seconds, read, ratio = paired(ours, plain, rounds)
    print(f"{name:<34} {size / seconds / 1e9:>8.2f} GB/s {size / read / 1e9:>10.2f} GB/s {ratio:>10.2f}", flush=True)


def on(device: str) -> None:
    """Print the table of one device."""
    print(f"\n{'on ' + device:<34} {'this':>13} {'plain read':>15} {'time ratio':>10}")
    large = torch.randint(-(2**31), 2**31 - 1, (WORDS,), dtype=torch.int32).to(device)
    size = large.numel() * 4
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def read() -> None:
        large.view(torch.int64).sum()
        wait()

    def digest() -> None:
        digest_many({"large": large})

    def xor() -> None:
        torch.hash_tensor(large)
        wait()

    measure("the digest, one tensor of 67 MB", size, digest, read)
    measure("torch.hash_tensor (an XOR)", size, xor, read)
    measure("SHA-256", size, lambda: hashlib.sha256(large.cpu().numpy()).digest(), read)
    measure("BLAKE2b", size, lambda: hashlib.blake2b(large.cpu().numpy()).digest(), read)

    state = named_state(UNet(3, 1, 2, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2).to(device))
    tensors = [tensor.detach() for tensor in state.values()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def read_each() -> None:
        for tensor in tensors:
            tensor.sum()
        wait()

    measure(f"the digest, a UNet's {len(tensors)} tensors", size, lambda: digest_many(state), read_each)
    measure(
        "SHA-256, the same",
        size,
        lambda: [hashlib.sha256(tensor.cpu().contiguous().numpy()).digest() for tensor in tensors],
        read_each,
    )


def main() -> None:
    """Print the tables."""
    print(f"digest: {machine()}")
    on("cpu")
    if torch.cuda.is_available():
        on("cuda")


if __name__ == "__main__":
    main()
