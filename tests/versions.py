"""What older neighbours of the package cannot do: marks for tests that need it.

Colab ships older libraries (``make test-colab``); what they lack is theirs.
"""

import datasets
import pytest
import transformers
from packaging.version import Version

# Refused in words by the package: see test_old_datasets_cannot_hold_tool_calls.
NEEDS_JSON = pytest.mark.skipif(
    not hasattr(datasets, "Json"), reason="datasets is too old to hold tool calls"
)
_OLD = Version(transformers.__version__) < Version("5.23")
# The model itself stops then, called without any of our code.
NEEDS_TIED_WEIGHTS_ON_DISK = pytest.mark.skipif(
    _OLD, reason="transformers 5.15 mixes up tied weights that lie on disk"
)
NEEDS_A_CAUSAL_REMBERT = pytest.mark.skipif(
    _OLD, reason="in transformers 5.15 RemBert sees what comes, also as a decoder"
)
