"""What takes the place of a transform's ``R`` is a RandomState in all but speed: nothing is left over, copies go on."""

from __future__ import annotations

import hashlib
import pickle
import struct
from copy import deepcopy
from typing import Any

import numpy as np
import pytest

from repro_callbacks import keys
from repro_callbacks.loading import streams
from repro_callbacks.loading.streams import Stream, stream_words

WORDS = stream_words(keys.derive(3407, "sample", 17), 3)

CALLS: dict[str, tuple[Any, ...]] = {
    "beta": (2.0, 3.0),
    "binomial": (10, 0.3),
    "bytes": (5,),
    "chisquare": (3.0,),
    "choice": (7,),
    "dirichlet": ([1.0, 2.0],),
    "exponential": (),
    "f": (2.0, 3.0),
    "gamma": (2.0,),
    "geometric": (0.3,),
    "gumbel": (),
    "hypergeometric": (5, 6, 4),
    "laplace": (),
    "logistic": (),
    "lognormal": (),
    "logseries": (0.3,),
    "multinomial": (5, [0.5, 0.5]),
    "multivariate_normal": ([0, 0], [[1, 0], [0, 1]]),
    "negative_binomial": (3, 0.4),
    "noncentral_chisquare": (3.0, 1.0),
    "noncentral_f": (3.0, 3.0, 1.0),
    "normal": (1, 2),
    "pareto": (3.0,),
    "permutation": (5,),
    "poisson": (3.0,),
    "power": (3.0,),
    "rand": (),
    "randint": (7,),
    "randn": (),
    "random": (),
    "random_integers": (7,),
    "random_sample": (),
    "rayleigh": (),
    "shuffle": ([1, 2, 3],),
    "standard_cauchy": (),
    "standard_exponential": (),
    "standard_gamma": (2.0,),
    "standard_normal": (),
    "standard_t": (3.0,),
    "tomaxint": (),
    "triangular": (0, 1, 2),
    "uniform": (),
    "vonmises": (0.0, 1.0),
    "wald": (1.0, 1.0),
    "weibull": (2.0,),
    "zipf": (2.0,),
}
STATE = {"seed", "get_state", "set_state"}


def at(words: bytes) -> Stream:
    stream = Stream()
    stream.seek(words)
    return stream


def test_every_way_to_draw_is_tried() -> None:
    public = {name for name in dir(np.random.RandomState) if not name.startswith("_")}
    assert public - STATE == set(CALLS)


@pytest.mark.filterwarnings("ignore:This function is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", CALLS)
def test_it_draws_what_a_random_state_draws_and_leaves_nothing_over(name: str) -> None:
    stream, numpys = at(WORDS[0]), np.random.RandomState(0)
    drawn, numpys_drawn = getattr(stream, name)(*CALLS[name]), getattr(numpys, name)(*CALLS[name])
    assert type(drawn) is type(numpys_drawn)
    assert np.shape(drawn) == np.shape(numpys_drawn)
    assert stream.get_state(legacy=False)["has_gauss"] == 0
    stream.seek(WORDS[1])
    assert states_equal(stream, at(WORDS[1]))


def states_equal(one: Stream, other: Stream) -> bool:
    return str(one.get_state(legacy=False)) == str(other.get_state(legacy=False))


@pytest.mark.parametrize("name", ["normal", "standard_normal", "gamma"])
def test_a_plain_random_state_would_leave_a_gaussian_over(name: str) -> None:
    """Negative control."""
    numpys = np.random.RandomState(np.random.SFC64(0))
    getattr(numpys, name)(*CALLS[name])
    assert numpys.get_state(legacy=False)["has_gauss"] == 1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("normal", (1, 2, 5)), ("normal", (np.zeros(3), 2, (4, 3))), ("standard_normal", ((2, 3),)), ("randn", (2, 3))],
)
def test_gaussians_are_a_generators_of_the_shape_asked_for(name: str, arguments: tuple[Any, ...]) -> None:
    drawn = getattr(at(WORDS[0]), name)(*arguments)
    bits = np.random.SFC64(0)
    bits.state = {**bits.state, "state": {"state": np.frombuffer(WORDS[0], "<u8")}}
    generator = np.random.Generator(bits)
    expected = generator.standard_normal(arguments) if name == "randn" else getattr(generator, name)(*arguments)
    assert np.array_equal(drawn, expected)


def test_a_negative_scale_is_refused_as_numpy_does() -> None:
    with pytest.raises(ValueError, match="scale < 0"):
        Stream().normal(0, -1)


@pytest.mark.parametrize("copy", [deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
def test_a_copy_goes_on_as_the_original_and_by_itself(copy: Any) -> None:
    stream = at(WORDS[0])
    stream.random_sample(3)
    other = copy(stream)
    drawn = [stream.normal(), stream.randint(9), stream.random_sample()]
    assert drawn == [other.normal(), other.randint(9), other.random_sample()]


def test_where_numpy_keeps_the_state_otherwise_it_is_moved_by_numpys_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = at(WORDS[2])
    assert quick._memory is not None, "NumPy keeps SFC64's state in another way now: bits are right, moving is slow"
    quick.randint(9, dtype=np.uint32)
    quick.seek(WORDS[2])
    monkeypatch.setattr(streams, "_memory_of", lambda bits: None)
    slow = at(WORDS[2])
    assert slow._memory is None
    assert states_equal(slow, quick)


def test_memory_that_is_laid_out_otherwise_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_LAYOUT", struct.Struct(">4QII"))
    assert streams._memory_of(np.random.SFC64(0)) is None


def test_words_are_the_shake_256_of_the_key() -> None:
    key = keys.derive(0, "sample")
    assert b"".join(stream_words(key, 5)) == hashlib.shake_256(key).digest(160)
    assert stream_words(key, 0) == ()
