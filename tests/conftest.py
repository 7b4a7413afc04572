"""What all tests share."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _prepared_data_elsewhere(tmp_path_factory: pytest.TempPathFactory):
    """No test reads or writes the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
