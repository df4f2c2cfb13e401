"""Prompts to token ids, exactly as TRL makes them: plain text as it is, chat messages through the chat template."""

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from stablerank.errors import DataError
from stablerank.rewards.rollout import Prompt


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, row: int) -> list[int]:
    """Token ids of one prompt; ``row`` names it in errors.

    Raises DataError for a prompt without a token, and for messages that the tokenizer has no template for or whose
    template refuses them.
    """
    ids = _text_ids(tokenizer, prompt) if isinstance(prompt, str) else _chat_ids(tokenizer, prompt, row)
    if not ids:
        raise DataError(f"Prompt {row} ({prompt!r:.60}) has no token for this tokenizer; drop the row.")
    return ids


def _text_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    return list(tokenizer(prompt)["input_ids"])


def _chat_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, row: int) -> list[int]:
    if tokenizer.chat_template is None:
        raise DataError(
            f"Prompt {row} holds chat messages, but the tokenizer has no chat template; set `data.chat=false`."
        )
    try:
        ids = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=True, return_dict=True)
    except TemplateError as error:
        raise DataError(
            f"The model's chat template refuses the messages ({' '.join(str(error).split())}); set `data.system=null` "
            "if it is the system message, else `data.chat=false`."
        ) from error
    return list(ids["input_ids"])
