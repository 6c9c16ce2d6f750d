"""The ground on which inputs are attacked."""

import pytest

from support.attack.ground import Ground


@pytest.fixture(scope="session")
def ground(tmp_path_factory, tiny_aspects, clip_folder):
    return Ground(tmp_path_factory.mktemp("ground"), tiny_aspects, clip_folder)
