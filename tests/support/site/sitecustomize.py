"""Python imports this at the start of every process whose PYTHONPATH names this folder: the test's faults with it."""

from tests.support.planted import install

install()
