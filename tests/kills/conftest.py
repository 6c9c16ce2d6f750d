"""What is killed."""

import pytest

from support.kills.programs import Programs


@pytest.fixture(scope="session")
def programs(tmp_path_factory, tiny_aspects, clip_folder):
    return Programs(tiny_aspects, clip_folder, tmp_path_factory.mktemp("inputs")).by_name()
