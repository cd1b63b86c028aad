"""Threads and backends.

Small products run many times faster on one thread; a test that wants more sets them and puts one back. The kernel is
there, compiled if need be, before the first test. Nothing has a deadline: tests run beside others.

A module whose tests are to hold for both backends says so: `BACKENDS = ("reference", "native")`. A test that holds for
one only says `on_reference` or `on_native` of tests/backends.py. Cells and dtypes that the kernel does not have run in
plain torch either way.

Of a grid of three arguments and more, `make test` runs cases that hold every pair of values, and of one that is marked
`covering(1)` every value; the rest is slow. tests/covering.py chooses them.

No test asks a hub of data sets; where there is no network its answer would take half a minute.
"""

import gc
import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from hypothesis import settings

from revtune.reversible.kernel import backend as native
from tests import interpreted
from tests.covering import leave_the_rest_to_slow

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # read when the library is first imported
torch.set_num_threads(1)
native.find()
if find_spec("triton"):
    interpreted.prepare()  # before anything else imports it
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    leave_the_rest_to_slow(items)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # else each collection of garbage, as of every meter, walks all ten thousand tests


@pytest.fixture(scope="module", autouse=True)
def imported_for_good() -> Iterator[None]:
    """Also keeps collections of garbage from what a module's tests imported, as torch.compile and exporters do much."""
    yield
    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = [mark for mark in metafunc.definition.iter_markers("parametrize") if "backend" in mark.args[0]]
    if hasattr(metafunc.module, "BACKENDS") and not chosen:
        metafunc.parametrize("backend", metafunc.module.BACKENDS, indirect=True)


@pytest.fixture(autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Sets the backend that a test was given, and tells it; else the one in force."""
    given: str = getattr(request, "param", native.backend())
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(request, "param"):
            patch.setenv("REVTUNE_BACKEND", given)
        if given == "native" and not native.find().library:
            pytest.skip(native.explain())
        yield given
