"""Do two tokenizers mean the same token by the same id? Distillation hands ids over, so nothing less will do.

Every id of the policy must be the same piece of text for the teacher. Free to differ: chat templates, which token ends
a text, what the teacher knows beyond the policy's ids, and padded rows of the embedding, which have no token. A special
token may be called something else, as reserved ones are renamed between releases, but never stand at another id; the
policy's end token only where it ends the teacher's texts too.

Cost: one pass over the vocabulary, 0.1 s for 150,000 tokens.

Left out on purpose: merges and pre-tokenisation (the teacher never tokenises), distillation across vocabularies.
"""

from transformers import PreTrainedTokenizerBase

from stablerank.errors import RewardError


def check_vocabulary(policy: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a teacher, called ``name`` in the message, that reads one of the policy's ids as another token.

    Raises:
        RewardError: names the lowest such id.
    """
    ours, theirs = policy.get_vocab(), teacher.get_vocab()
    read_as = {index: token for token, index in theirs.items()}
    renamable = _special_ids(policy) & _special_ids(teacher)
    if policy.eos_token_id != teacher.eos_token_id:
        renamable.discard(policy.eos_token_id)  # by another name it may mean anything, and every completion has it
    wrong = sorted(
        (index, token)
        for token, index in ours.items()
        if read_as.get(index) != token
        and (index not in renamable or token in theirs or read_as[index] in ours)  # moved, not renamed
    )
    if not wrong:
        return
    index, token = wrong[0]
    read = repr(read_as[index]) if index in read_as else "no token"
    raise RewardError(
        f"the teacher {name} reads token id {index} as {read:.60}, but the policy as {token!r:.60} ({len(wrong)} of "
        f"{len(ours)} ids differ); distil from a model with the policy's tokenizer"
    )


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)
