import subprocess
import sys

import pytest
import torch

from repro_callbacks.record import environment
from tests.record.test_run_record import run_python


@pytest.mark.slow
def test_neither_lightning_nor_monai_is_imported():
    code = "import sys, repro_callbacks.record; print({'lightning', 'pytorch_lightning', 'monai'} & set(sys.modules))"
    assert run_python(code).strip() == "set()"
    control = "import repro_callbacks.callbacks.base;" + code
    assert run_python(control).strip() != "set()"


def test_a_package_that_is_not_installed_has_no_version():
    versions = environment.versions()
    assert set(environment.PACKAGES) <= set(versions)
    missing = [name for name, version in versions.items() if version is None and name in environment.PACKAGES]
    code = f"import importlib.metadata as m; print([n for n in {missing} if list(m.distributions(name=n))])"
    assert run_python(code).strip() == "[]"


def test_only_variables_that_are_set_are_read(monkeypatch):
    monkeypatch.delenv("MKL_CBWR", raising=False)
    assert "MKL_CBWR" not in environment.variables()
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    assert environment.variables()["MKL_CBWR"] == "AVX2"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")  # nothing but the variables of the table
    assert set(environment.variables()) <= set(environment.ENVIRONMENT_VARIABLES)


@pytest.mark.slow
def test_the_cpu_capability_is_the_one_in_force_and_does_change_bits():
    code = """
import pytest
import torch
from repro_callbacks.record import environment
torch.manual_seed(0)
values = torch.randn(10_007)
print(environment.hardware()["cpu_capability"], environment.build()["torch_config"])
print(values.sum().item().hex(), values.exp().sum().item().hex())
"""
    (plain, build), bits = (line.split() for line in run_python(code, ATEN_CPU_CAPABILITY="default").splitlines())
    (usual, usual_build), usual_bits = (line.split() for line in run_python(code).splitlines())
    assert plain == "DEFAULT"
    assert usual == torch.backends.cpu.get_cpu_capability()
    assert build == usual_build  # the digest is of the build, not of the machine
    assert (bits == usual_bits) is (plain == usual)


def test_accelerators_are_told_without_starting_any():
    kinds, count = environment.accelerators()
    assert bool(kinds) is bool(count)
    assert not torch.cuda.is_initialized()
    if not torch.accelerator.is_available():
        assert (kinds, count) == ([], 0)


@pytest.mark.slow
def test_a_process_forked_after_a_record_can_still_fork_and_compute():
    code = """
import multiprocessing, torch
from repro_callbacks import RunRecord
RunRecord.capture(seed=1)
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.apply(RunRecord.capture, (1,)).diff(RunRecord.capture(1)))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "no differences"
