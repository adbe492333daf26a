"""How many cases a property test of the labels draws: 500, or as many as `make test-slow` asks for."""

from __future__ import annotations

import os

VARIABLE = "HMSA_TEST_CASES"
CASES = int(os.environ.get(VARIABLE, "500"))
