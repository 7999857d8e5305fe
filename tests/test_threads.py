"""Whoever limits torch's threads limits numba's: they share an OpenMP runtime, and numba would undo the limit."""

import os
import subprocess
import sys

import pytest

ASK = "import torch, {package}, numba; print(numba.get_num_threads(), torch.get_num_threads())"  # asking starts numba's threads


def said(code: str, limit: str) -> subprocess.CompletedProcess:
    """What a process with this OMP_NUM_THREADS, and no number for numba, prints."""
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_NUM_THREADS"} | {"OMP_NUM_THREADS": limit}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("package", ["toybox", "ministudio"])
def test_the_kernels_leave_torch_the_threads_that_it_was_given(package):
    told = said(ASK.format(package=package), "1")
    assert told.stdout.split() == ["1", "1"], told.stderr


@pytest.mark.parametrize("odd", ["0", "4,2", "many"])
def test_a_limit_that_is_no_number_is_not_passed_on(odd):
    told = said("import toybox, os; print(os.environ.get('NUMBA_NUM_THREADS'))", odd)
    assert told.stdout.split() == ["None"], told.stderr
