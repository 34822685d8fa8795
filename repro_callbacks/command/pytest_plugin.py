"""For pytest: ``assert_reproducible``, so that a project keeps its reproducibility as it keeps its other promises.

pytest imports this when it starts, in every project that has this package, so it imports nothing but pytest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from repro_callbacks.command.verify import Verification


@pytest.fixture
def assert_reproducible(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Verification]:
    """Return a function that takes what :func:`repro_callbacks.verify` takes, and fails the test if the runs differ.

    The failure's message is the first divergence, and says where logs and fingerprints are kept.

    Example::

        def test_training_is_reproducible(assert_reproducible):
            assert_reproducible(train, vary={"num_workers": [0, 2]}, resume_at="50%")
    """

    def check(fit: Any, *, out: str | Path | None = None, **options: Any) -> Verification:
        from repro_callbacks.command.verify import verify

        folder = tmp_path_factory.mktemp("reproducible") if out is None else out
        verification = verify(fit, out=folder, **options)
        if not verification.equal:
            pytest.fail(str(verification), pytrace=False)
        return verification

    return check
