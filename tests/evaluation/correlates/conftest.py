import numpy as np
import pytest

from stablerank.evaluation.correlates.embedding import mean_pooled
from stablerank.tasks.files import data_folder


@pytest.fixture(scope="session")
def embed():
    """Embeddings by the embedded student."""
    return mean_pooled("zoo:arith-student")


@pytest.fixture(scope="session")
def data():
    folder = data_folder()
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}")
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(0)
