import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stablerank.tasks.files import data_folder
from stablerank.zoo.resolve import resolve

CORPUS = [
    "First, 3 + 4 = 7.\n\nSo 7 * 2 = 14.\nThen 14 - 5 = 9.\n\n\nThe answer is 9.",
    "A step.\nSo the next step.\n\n- a list\n- of lines\n\n\n\nNaïve café, 数学 и 😀😃.\n",
    "So\n\nSo\nSo.\n\n- .\n- 😀\n数学\n\nки + - ки\n",
]


@pytest.fixture(scope="session")
def characters():
    """The embedded models' tokenizer: one token a character."""
    return AutoTokenizer.from_pretrained(resolve("zoo:arith-prm"))


@pytest.fixture(scope="session")
def byte_bpe():
    """Byte-level BPE that merges across line breaks, and splits most characters outside ASCII over tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=alphabet, special_tokens=["<eos>", "<pad>"], show_progress=False
    )
    core.train_from_iterator(CORPUS * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")


@pytest.fixture(scope="session")
def stories():
    """A real vocabulary of SentencePiece's kind, with byte fallback."""
    folder = data_folder() / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no stories260K in {data_folder()}: set STABLERANK_DATA to the folder of real data")
    return AutoTokenizer.from_pretrained(folder)


TOKENIZERS = ["characters", "byte_bpe", pytest.param("stories", marks=pytest.mark.data)]


@pytest.fixture(scope="session", params=TOKENIZERS)
def any_tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def pieces():
    """A tokenizer of the given pieces, whose ids are their places; the first is the special end token."""

    def build(*spellings):
        core = Tokenizer(models.WordLevel({piece: at for at, piece in enumerate(["<eos>", *spellings])}))
        core.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")

    return build
