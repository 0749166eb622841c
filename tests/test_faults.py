"""Those of tests/runtime/faults; a file of their own, to run beside test_runtime.py."""

from pathlib import Path

import pytest
from runtime_on_a_bake import assert_all_pass, bake_default


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_fault_costs_what_the_runtime_says_it_costs(
    template: Path, env: dict[str, str], tmp_path: Path
) -> None:
    assert_all_pass("faults", bake_default(template, env, tmp_path), env)
