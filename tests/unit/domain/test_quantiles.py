from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.domain.quantiles import quantiles


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50), st.lists(st.floats(0, 1), max_size=4))
def test_quantiles_are_those_of_numpy(values: list[float], shares: list[float]) -> None:
    found = quantiles(np.array(values, np.float32), *shares)
    assert found == pytest.approx([float(np.quantile(np.array(values), share)) for share in shares], abs=1e-6)
