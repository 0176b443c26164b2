import pytest

from trl_irl.soft_q import tiles


@pytest.fixture(params=[None, 300], ids=["whole tiles", "chunks"])
def chunk(request, monkeypatch):
    """On a CPU a tile is gone through in rows that fit into the cache: of tiny vocabularies that is all of them."""
    if request.param is not None:  # two rows of 101 tokens, and of 13 rows one is left for the last chunk
        monkeypatch.setattr(tiles, "_CHUNK", request.param)
