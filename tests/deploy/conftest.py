import pytest
from overlays import OVERLAYS, built


@pytest.fixture(scope="module", params=sorted(OVERLAYS))
def overlay(request):
    """(name, what it builds)."""
    return request.param, built(request.param)
