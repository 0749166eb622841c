"""Marks of tests about scenes, which conftest.py plays side by side."""

import pytest

from . import cast, network


def about(*names: str) -> pytest.MarkDecorator:
    """A test of what became of these of the module's SCENES; it gets it as `scene`."""
    return pytest.mark.parametrize("scene", names, indirect=True)


needs_redis = pytest.mark.skipif(cast.missing() is not None, reason=str(cast.missing()))
needs_network = pytest.mark.skipif(network.missing() is not None, reason=str(network.missing()))
