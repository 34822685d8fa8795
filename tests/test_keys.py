"""Keys: the derivation is pinned, and can be computed from its description alone."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from repro_callbacks import keys

# -- the description at the head of keys.py, written out again with hashlib alone --------------------------------------
# 1. a component is a tag, the length of its payload, a colon, the payload; 2. seed, purpose and position are joined;
# 3. BLAKE2b, 32 bytes, personalisation "repro-callbacks1"; 4. words are little-endian from the start.


def written(component: Any) -> bytes:
    if isinstance(component, tuple):
        tag, payload = "t", b"".join(written(part) for part in component)
    elif isinstance(component, str):
        tag, payload = "s", component.encode("utf-8")
    else:
        tag, payload = "i", str(component).encode("ascii")
    return f"{tag}{len(payload)}:".encode("ascii") + payload


def described(seed: int, purpose: str, *position: Any) -> bytes:
    message = b"".join(written(part) for part in (seed, purpose, *position))
    return hashlib.blake2b(message, digest_size=32, person=b"repro-callbacks1").digest()


# Computed once and never to change without a major version. Each line: seed, purpose, position, key.
GOLDEN: list[tuple[int, str, tuple[Any, ...], str]] = [
    (0, "order", (0,), "1a533f00814f202005b29774344208ee418c8732f19dc4a90dfd02007215982b"),
    (1, "order", (0,), "68da523fc4cba08a27e202aec1d07df74bfa3dbc447c1edd2e9cad9b6fa12d89"),
    (0, "order", (1,), "2a2b85a90a33efe611ab17b8135f6bb9db19c1463e2136acf407596a3f36a6a5"),
    (3407, "sample", (3, 17, 0), "aba80425eaf3c4cab98ec7040870126757de38d9cba627cf0b3ed4501468c207"),
    (
        4294967295,
        "sample",
        ("train", 0, 12, 0, 99, 1),
        "41d6155c5a1d338e739ebb4888678b8b6bba082efef268a9a4bbdc31e84fe025",
    ),
    (3407, "batch", ("train", 0, 3, 0, 5, 1), "4f69a18f892b48c6c07288351fdb474783d47120402e82cccf81c0f73877c419"),
    (
        3407,
        "step",
        ("train", 3, 5, "training_step", 0, 1),
        "e549c1110acacf24a51b6fc7729184983f2c578340b88de619a608b324787e25",
    ),
    (7, "worker", ("validate", 1, 0, 0, 0, 2, 40), "6331fe30b69061ba2ae7773eaf680c0fd2863f5cd859d4c1daef6fbf10032115"),
    (
        7,
        "sample",
        ("train", 0, 0, 0, ("a", (1, 2)), 0),
        "a72a2e9bcfd76dd73a4d02bd3a07b7e467fdc545274da62fb45294b90ffb114c",
    ),
    (0, "", (), "0daa6f429f82f1396b9c158836ff9d3472927b963c3d7cc45a09b959e8838e8a"),
]

COMPONENTS: list[tuple[Any, bytes]] = [
    (17, b"i2:17"),
    (0, b"i1:0"),
    (-3, b"i2:-3"),
    (2**32 - 1, b"i10:4294967295"),
    ("order", b"s5:order"),
    ("", b"s0:"),
    ("ä", b"s2:\xc3\xa4"),
    ((1, "a"), b"t8:i1:1s1:a"),
    ((), b"t0:"),
    (((1,), 2), b"t11:t4:i1:1i1:2"),
    (np.int64(17), b"i2:17"),
    (torch.tensor(17), b"i2:17"),
]


@pytest.mark.parametrize(("seed", "purpose", "position", "key"), GOLDEN)
def test_golden_keys(seed: int, purpose: str, position: tuple[Any, ...], key: str) -> None:
    assert keys.derive(seed, purpose, *position).hex() == key
    assert described(seed, purpose, *position).hex() == key


@pytest.mark.parametrize(("seed", "purpose", "position", "key"), GOLDEN)
def test_a_key_is_the_same_wherever_it_is_divided(seed: int, purpose: str, position: tuple[Any, ...], key: str) -> None:
    every = (seed, purpose, *position)
    for at in range(len(every) + 1):
        assert keys.derive_within(every[:at], *every[at:]).hex() == key
        assert keys.derive_within(every[:at], *every[at:]).hex() == key  # what is kept of the place is not used up


@pytest.mark.parametrize(("component", "expected"), COMPONENTS)
def test_a_component_is_written_as_described(component: Any, expected: bytes) -> None:
    assert keys.encode(component) == expected


def test_the_description_is_enough_to_compute_any_key() -> None:
    draw = np.random.default_rng(0)
    for _ in range(500):
        seed, epoch, index = (int(value) for value in draw.integers(0, 2**32, 3))
        purpose = str(draw.choice(["order", "sample", "batch", "step", "worker"]))
        position = (epoch, (index, "x" * int(draw.integers(0, 12))), "train")
        assert keys.derive(seed, purpose, *position) == described(seed, purpose, *position)


def test_the_words_of_a_key() -> None:
    key = bytes(range(32))
    assert keys.words64(key) == tuple(int.from_bytes(key[i : i + 8], "little") for i in range(0, 32, 8))
    assert keys.words32(key) == tuple(int.from_bytes(key[i : i + 4], "little") for i in range(0, 32, 4))


# -- no two positions share a key --------------------------------------------------------------------------------------


def test_epoch_1_of_seed_0_is_not_epoch_0_of_seed_1() -> None:
    positions = list(itertools.product(range(64), ("order", "sample"), range(64)))
    assert len({keys.derive(*position) for position in positions}) == len(positions)


def test_adding_would_make_them_collide() -> None:
    positions = list(itertools.product(range(64), range(64)))
    assert len({described(seed + epoch, "order") for seed, epoch in positions}) < len(positions)


ALIKE: list[tuple[tuple[Any, ...], tuple[Any, ...]]] = [
    ((1, 23), (12, 3)),
    (("a", "bc"), ("ab", "c")),
    ((1,), ("1",)),
    ((1, 2), ((1, 2),)),
    (((1, 2), 3), ((1,), 2, 3)),
    ((), ((),)),
    (("i1:1",), (1,)),
    (("", "a"), ("a", "")),
]


@pytest.mark.parametrize(("a", "b"), ALIKE)
def test_positions_that_look_alike_are_written_apart(a: tuple[Any, ...], b: tuple[Any, ...]) -> None:
    assert keys.encode(a) != keys.encode(b)
    assert keys.derive(0, "sample", *a) != keys.derive(0, "sample", *b)


def test_integers_of_any_kind_are_the_same_position() -> None:
    plain = keys.derive(3407, "sample", 3, 17)
    assert keys.derive(3407, "sample", np.int64(3), torch.tensor(17)) == plain
    assert keys.derive(np.uint32(3407), "sample", 3, 17) == plain  # type: ignore[arg-type]


@pytest.mark.parametrize("component", [1.0, None, True, np.bool_(True), [1], b"a", np.zeros(2)])
def test_what_is_no_position_is_refused(component: Any) -> None:
    with pytest.raises(TypeError, match="a position is made of integers, strings and tuples of them, not "):
        keys.derive(0, "sample", component)


# -- seeds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 3407, 2**32 - 1, np.int64(5), np.uint32(2**32 - 1), torch.tensor(3)])
def test_a_seed_is_taken_as_a_plain_integer(seed: Any) -> None:
    checked = keys.check_seed(seed)
    assert type(checked) is int
    assert checked == int(seed)


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (-1, ValueError, "seed must be an integer from 0 to 4294967295, not -1"),
        (2**32, ValueError, "seed must be an integer from 0 to 4294967295, not 4294967296"),
        (np.int64(-7), ValueError, "seed must be an integer from 0 to 4294967295, not -7"),
        (1.0, TypeError, "seed must be an integer from 0 to 4294967295, not 1.0 of type float"),
        (True, TypeError, "seed must be an integer from 0 to 4294967295, not True of type bool"),
        (np.bool_(True), TypeError, "of type bool"),
        ("3", TypeError, "seed must be an integer from 0 to 4294967295, not '3' of type str"),
        (None, TypeError, "seed must be an integer from 0 to 4294967295, not None of type NoneType"),
        (np.float32(2), TypeError, "of type float32"),
        (torch.tensor(1.0), TypeError, "of type Tensor"),
    ],
)
def test_what_is_no_seed_is_refused_by_its_value(seed: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        keys.check_seed(seed)
    assert message in str(caught.value)


def test_the_error_calls_the_value_by_its_name() -> None:
    with pytest.raises(ValueError, match="epoch must be an integer from 0 to 4294967295, not -2"):
        keys.check_seed(-2, "epoch")


def test_each_purpose_has_the_seed_unless_it_is_given_one() -> None:
    assert keys.check_seeds(3, None) == {"order": 3, "augment": 3, "init": 3, "step": 3}
    given = {"order": np.int64(1), "step": 0}
    assert keys.check_seeds(3, given) == {"order": 1, "augment": 3, "init": 3, "step": 0}  # type: ignore[arg-type]
    assert given == {"order": 1, "step": 0}


@pytest.mark.parametrize(
    ("seeds", "error", "message"),
    [
        ({"augmentation": 1}, ValueError, "no purpose 'augmentation'; allowed are order, augment, init, step"),
        ({"order": -1}, ValueError, r"seeds['order'] must be an integer from 0 to 4294967295, not -1"),
        ({"step": "1"}, TypeError, r"seeds['step'] must be an integer from 0 to 4294967295, not '1' of type str"),
        ({"init": True}, TypeError, r"seeds['init'] must be an integer"),
    ],
)
def test_seeds_that_are_refused(seeds: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        keys.check_seeds(0, seeds)
    assert message in str(caught.value)
