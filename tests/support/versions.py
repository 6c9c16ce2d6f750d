"""What tests can ask of old releases."""

import pytest
import transformers
from packaging.version import Version

HAS_TRANSFORMERS_5 = Version(transformers.__version__) >= Version("5")


def needs_transformers_5(why):
    """Marks a test that releases before 5 cannot pass."""
    return pytest.mark.skipif(not HAS_TRANSFORMERS_5, reason=f"before transformers 5 {why}")


shows_attention = needs_transformers_5("models with hooks do not show their attention")
as_recorded = needs_transformers_5("first weights and names of processors are others than those that were recorded")
