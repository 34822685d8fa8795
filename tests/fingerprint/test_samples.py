"""A batch's digest and those of its samples: another order is told from other content."""

import pytest
import torch

from repro_callbacks.fingerprint.samples import start_batch


def image(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Shapes that take each way through: padded, whole blocks, large with a tail, one number, 0 numbers for each sample.
SHAPES = [(4, 3, 5), (4, 2048), (4, 300_001), (4,), (4, 0), (1, 7), (256, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.float64])
def test_order_and_content(shape, dtype):
    tensor = (image(*shape) * 50).to(dtype)
    one = start_batch(tensor).result()
    assert len(one.samples) == shape[0]
    assert start_batch(tensor.clone()).result() == one
    if tensor.numel() == 0 or shape[0] == 1:
        return
    turned = start_batch(tensor.flip(0)).result()
    assert turned.whole != one.whole
    assert turned.samples == one.samples[::-1]
    other = tensor.clone()
    other.view(-1).view(torch.uint8)[-1] ^= 1
    found = start_batch(other).result()
    assert found.whole != one.whole
    assert found.samples[:-1] == one.samples[:-1]
    assert found.samples[-1] != one.samples[-1]


BATCHES = {
    "tuple": lambda order: (image(3, 4)[order], torch.arange(3)[order]),
    "mapping": lambda order: {"image": image(3, 4)[order], "name": ["abc"[i] for i in order]},
    "nested": lambda order: {"a": [image(3, 4)[order], {"b": torch.arange(3)[order]}], "c": 1.5},
    "list of samples": lambda order: [{"image": image(2 + i, 3, seed=i), "label": i} for i in order],
    "uneven samples": lambda order: [{"boxes": [image(1, 4, seed=j) for j in range(i)]} for i in order],
    "metatensor": lambda order: {"image": _meta(image(3, 4)[order])},
}


def _meta(tensor):
    from monai.data import MetaTensor

    return MetaTensor(tensor, meta={"path": "x"})


@pytest.mark.parametrize("name", BATCHES)
def test_kinds_of_batches(name):
    straight, turned = (start_batch(BATCHES[name](order)).result() for order in ([0, 1, 2], [2, 0, 1]))
    assert len(set(straight.samples)) == 3
    assert sorted(straight.samples) == sorted(turned.samples)
    assert straight.whole != turned.whole
    assert start_batch(BATCHES[name]([0, 1, 2])).result() == straight


def test_what_samples_share_counts_in_the_whole():
    one = start_batch({"image": image(3, 4), "spacing": 1.0}).result()
    two = start_batch({"image": image(3, 4), "spacing": 2.0}).result()
    assert one.samples == two.samples
    assert one.whole != two.whole


def test_names_shapes_and_dtypes_count():
    tensor = torch.zeros(2, 6)
    batches = [tensor, {"a": tensor}, {"b": tensor}, [tensor], tensor.view(2, 2, 3), tensor.half(), [tensor, tensor]]
    assert len({start_batch(batch).result().whole for batch in batches}) == len(batches)


def test_what_has_no_samples():
    for batch in (None, 3, "text", torch.tensor(1.0), {}, [], torch.zeros(2, 2).to_sparse(), {"a": None}):
        found = start_batch(batch).result()
        assert found.samples is None
        assert found == start_batch(batch).result()
