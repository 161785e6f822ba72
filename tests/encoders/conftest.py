import pytest

from tests.encoders.tiny_encoders import write_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """tiny(kind) -> folder of a made transformer, made once."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = str(write_tiny(kind, tmp_path_factory.mktemp(kind)))
        return made[kind]

    return get
