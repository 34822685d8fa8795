"""Digests: what they see, what they don't, and that they stay what they are."""

import dataclasses
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from repro_callbacks.fingerprint import blocks
from repro_callbacks.fingerprint.digest import combine, digest, digest_many, digest_state, digest_tree, start_digests

LARGE = 300_000  # bytes beyond which a tensor is read in place


def ramp(*shape, dtype=torch.float32):
    return (torch.arange(int(np.prod(shape))) * 7 % 251).reshape(shape).to(dtype)


# Pinned: a digest is written into files that are compared years later, on other machines.
GOLDEN = {
    "scalar": (torch.tensor(1.5), "0b53641311d6bba5615ffea26b2ed7cb"),
    "empty": (torch.empty(0, 3), "a720d4d7ce6995a59e8feb42ddb6d621"),
    "float32": (ramp(2, 3), "4989c75ce6357d17cc59e6899e229518"),
    "float64": (ramp(5, dtype=torch.float64), "4ffe6090c017fb7f91cb887b26e11493"),
    "bfloat16": (ramp(7, dtype=torch.bfloat16), "7af7fabc185391334b75cbc5cee43abc"),
    "bool": (ramp(9).bool(), "13da40bc7dce9e4a30223888590729e8"),
    "complex128": (ramp(4, dtype=torch.complex128), "2451bd8065a4125db5a3a9d257140bb2"),
    "several blocks": (ramp(3, 5000), "0da75273434743d47b0d41854c2a26f0"),
    "in place": (ramp(101, 1009), "18bdf7de6b8928e530db6626129f8b79"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_digests(name):
    tensor, expected = GOLDEN[name]
    assert digest(tensor) == expected


def test_golden_tree():
    tree = {"image": ramp(2, 2), "meta": [1, 2.0, None, True, "a", b"b", (np.float32(3), np.arange(3, dtype="<i4"))]}
    assert digest_tree(tree) == "cc9341b95262b42ec4a6ef90097e3e58"


@pytest.mark.slow
def test_same_digest_in_another_process_with_another_hash_seed():
    code = (
        "import torch; from repro_callbacks.fingerprint.digest import digest_tree;"
        "print(digest_tree({'b': {1, 'x', 3}, 'a': torch.arange(9)}))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {digest_tree({"b": {1, "x", 3}, "a": torch.arange(9)}) + "\n"}


@pytest.mark.parametrize("count", [1, 6, 3001, LARGE // 4 + 4099])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int8, torch.int64])
def test_every_bit_counts(count, dtype):
    tensor = torch.randint(-100, 100, (count,), generator=torch.Generator().manual_seed(0)).to(dtype)
    seen = {digest(tensor)}
    raw = tensor.view(torch.uint8)
    places = np.random.default_rng(0).choice(raw.numel() * 8, size=min(40, raw.numel() * 8), replace=False).tolist()
    for place in places:
        raw[place // 8] ^= 1 << place % 8
        seen.add(digest(tensor))
        raw[place // 8] ^= 1 << place % 8
    assert len(seen) == len(places) + 1
    assert digest(tensor) in seen


def test_position_counts_where_an_xor_does_not_see_it():
    tensor = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    swapped = tensor[[1, 0, *range(2, 64)]]
    assert torch.hash_tensor(tensor) == torch.hash_tensor(swapped)  # negative control: torch's own is blind to it
    assert digest(tensor) != digest(swapped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_signs_that_flip_together_count(dtype):
    # The top bit of a word has only one bit of weight in a plain sum of products: flipped twice it would vanish.
    tensor = torch.randn(2048, generator=torch.Generator().manual_seed(0)).to(dtype)
    seen = set()
    for first in range(0, 64, 3):
        for second in range(first + 1, 64, 5):
            other = tensor.clone()
            other[[first, second]] *= -1
            seen.add(digest(other))
    assert len(seen) == sum(len(range(first + 1, 64, 5)) for first in range(0, 64, 3))
    assert digest(-tensor) not in seen


def test_blocks_in_another_order_count():
    tensor = torch.randn(8, 2048, generator=torch.Generator().manual_seed(0))
    assert digest(tensor) != digest(tensor.flip(0))


def test_bits_not_values():
    quiet, payload = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32).split(1)
    assert digest(quiet) == digest(quiet.clone())
    assert digest(quiet) != digest(payload)
    assert digest(torch.tensor([0.0])) != digest(torch.tensor([-0.0]))


def test_shape_and_dtype_count():
    tensor = torch.zeros(6)
    others = [tensor.view(2, 3), tensor.view(1, 6), tensor.int(), torch.zeros(7), tensor.half(), tensor.bool()]
    assert len({digest(tensor), *map(digest, others)}) == 1 + len(others)


def test_zeros_of_any_length_differ():
    assert len({digest(torch.zeros(count)) for count in range(0, 5000, 7)}) == len(range(0, 5000, 7))


@pytest.mark.parametrize("shape", [(4, 6, 5), (12, 64, 33, 17)])
def test_strides_do_not_count(shape):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = digest(tensor)
    assert digest(tensor.transpose(0, -1).contiguous().transpose(0, -1)) == expected
    padded = torch.zeros(*shape[:-1], shape[-1] + 3)
    padded[..., 1:-2] = tensor
    assert digest(padded[..., 1:-2]) == expected
    shifted = torch.zeros(tensor.numel() + 1)
    shifted[1:] = tensor.flatten()
    assert digest(shifted[1:].view(shape)) == expected  # not aligned to 8 bytes


def test_lazy_bits_of_a_view_are_resolved():
    tensor = torch.randn(5, dtype=torch.complex64)
    assert digest(tensor.conj()) == digest(tensor.conj().resolve_conj()) != digest(tensor)
    assert digest(tensor.conj().imag) == digest(tensor.conj().imag.clone())


def test_threads_do_not_count():
    tensor = torch.randn(1 << 20)
    before = torch.get_num_threads()
    try:
        seen = set()
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            seen.add(digest(tensor))
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 1


def test_what_an_accelerator_computes_is_what_a_cpu_computes():
    words = torch.randint(-(2**63), 2**63 - 1, (5000, blocks.WORDS), generator=torch.Generator().manual_seed(0))
    own, other = torch.empty(5000, 2, dtype=torch.int64), torch.empty(5000, 2, dtype=torch.int64)
    blocks._sum_blocks_with_numpy(words.numpy(), own.numpy())
    blocks._sum_blocks_with_torch(words, other)
    assert torch.equal(own, other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_digests_on_a_gpu(name):
    tensor, expected = GOLDEN[name]
    assert digest(tensor.cuda()) == expected


def test_block_sums_by_definition():
    tensor = torch.randint(-(2**63), 2**63 - 1, (blocks.WORDS + 5,), generator=torch.Generator().manual_seed(0))
    (sums,) = blocks.block_sums([tensor]).result()
    table = blocks._coefficients().astype(object)
    words = [int(word) % 2**64 for word in tensor.tolist()] + [0] * (blocks.WORDS - 5)
    for block in (0, 1):
        for lane in (0, 1):
            total = 0
            for i in range(blocks.WORDS):
                word = words[block * blocks.WORDS + i]
                low, high = word % 2**32, word >> 32
                high -= (high >> 31) << 32  # read with its sign
                a, b = table[lane, 0, i], table[lane, 1, i]
                total += low * a + high * ((a << 32) + b)
            assert int(sums[block, lane]) % 2**64 == total % 2**64


def test_nothing_is_drawn_or_changed_also_in_deterministic_mode():
    torch.manual_seed(0)
    tensors = {"a": torch.randn(9, requires_grad=True), "b": torch.randn(200, 400), "c": torch.ones(3).to_sparse()}
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    torch.use_deterministic_algorithms(True)
    try:
        strict = digest_many(tensors)
    finally:
        torch.use_deterministic_algorithms(False)
    assert digest_many(tensors) == strict
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == states[2]
    assert all(torch.equal(tensors[name].detach().to_dense(), copies[name].to_dense()) for name in tensors)


def test_many_at_once_are_each_alone():
    tensors = {
        str(i): torch.randn(size, generator=torch.Generator().manual_seed(i)).to(dtype)
        for i, (size, dtype) in enumerate(
            [(1, torch.float32), (70_000, torch.float64), (0, torch.float32), (5, torch.half), (100_001, torch.float32)]
            * 2
        )
    }
    assert digest_many(tensors) == {name: digest(tensor) for name, tensor in tensors.items()}


def test_a_started_digest_is_of_the_moment_it_was_started():
    tensor = torch.zeros(5)
    pending = start_digests({"a": tensor})
    before = digest(tensor)
    tensor.add_(1)
    assert pending.result() == {"a": before}


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize_per_tensor", "ignore:The PyTorch API of nested")
def test_kinds_of_tensors():
    sparse = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    kinds = [
        sparse,
        sparse.to_sparse(),
        sparse.to_sparse_csr(),
        sparse.to_sparse_csc(),
        sparse.to("meta"),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        torch.quantize_per_tensor(sparse, 0.1, 3, torch.quint8),
        nn.parameter.UninitializedParameter(),
        sparse.to(torch.float8_e4m3fn),
    ]
    found = [digest(tensor) for tensor in kinds]
    assert len(set(found)) == len(kinds)
    assert found == [digest(tensor) for tensor in kinds]
    assert digest(nn.Parameter(sparse)) == digest(sparse)


def test_a_metatensor_is_its_data():
    from monai.data import MetaTensor

    data = torch.randn(1, 4, 4)
    one, two = MetaTensor(data, meta={"filename_or_obj": "a"}), MetaTensor(data, meta={"filename_or_obj": "b"})
    assert digest(one) == digest(two) == digest(data)
    assert digest_tree({"image": one}) == digest_tree({"image": two})


@dataclasses.dataclass
class Pair:
    image: torch.Tensor
    label: int


class Graph:
    def __init__(self, edges):
        self.edges = edges


def test_trees_that_differ():
    trees = [
        [torch.zeros(2), torch.ones(2)],
        [torch.ones(2), torch.zeros(2)],
        (torch.zeros(2), torch.ones(2)),
        [[torch.zeros(2)], torch.ones(2)],
        {"a": torch.zeros(2), "b": torch.ones(2)},
        {"b": torch.zeros(2), "a": torch.ones(2)},
        Pair(torch.zeros(2), 1),
        Pair(torch.zeros(2), 2),
        Graph(torch.zeros(2)),
        Graph(torch.ones(2)),
        np.zeros(2),
        np.zeros(2, np.float32),
        np.array(["a", None], dtype=object),
        1, 1.0, True, None, "1", b"1", 1j, 0.0, -0.0, float("nan"), "", [], (), {}, set(), [[]],
        torch.float32, torch.device("cpu"), {1, 2}, {1: 2}, nn.Linear, len,
    ]  # fmt: skip
    found = [digest_tree(tree) for tree in trees]
    assert len(set(found)) == len(trees)
    assert found == [digest_tree(tree) for tree in trees]


def test_a_tree_that_holds_itself_ends():
    tree = [1]
    tree.append(tree)
    assert digest_tree(tree) == digest_tree(tree) != digest_tree([1, [1]])


def test_digest_state_sees_names_values_and_buffers():
    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))

    expected = digest_state(build())
    assert digest_state(build()) == expected
    for change in (
        lambda net: net[0].weight.data.view(torch.int32)[0, 0, 0].bitwise_xor_(1),
        lambda net: net[1].running_mean.add_(1e-7),
        lambda net: net.add_module("more", nn.Linear(1, 1)),
        lambda net: net.register_buffer("mask", torch.ones(1), persistent=False),
    ):
        net = build()
        change(net)
        assert digest_state(net) != expected
    assert digest_state(nn.LazyLinear(3)) == digest_state(nn.LazyLinear(3))


def test_combine_needs_no_order():
    assert combine({"a": "1", "b": "2"}) == combine({"b": "2", "a": "1"}) != combine({"a": "2", "b": "1"})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_small_tensors_are_packed_on_a_cpu_as_on_an_accelerator(dtype):
    per_block = blocks.BLOCK_BYTES // dtype.itemsize
    sizes = (1, per_block - 1, per_block, per_block + 1, 3)
    flats = [torch.arange(1, size + 1).to(dtype) for size in sizes]
    padding = torch.zeros(per_block, dtype=dtype)
    expected = torch.cat([piece for flat in flats for piece in (flat, padding[: -flat.numel() % per_block])])
    assert torch.equal(blocks._pack(flats, per_block), expected)
