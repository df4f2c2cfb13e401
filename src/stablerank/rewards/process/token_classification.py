"""Process reward models that classify tokens, as TRL's ``PRMTrainer`` trains them: two labels, 1 for a right step.

Legend: B rows of a batch, L tokens of its longest row, U positions of separators.

Input: the question's tokens behind the tokenizer's begin token if it has one, then for each step its tokens and those
of the separator, every piece encoded by itself and without special tokens. P(right) is the softmax over the two labels
at the last token of the separator.

Source: ``PRMTrainer.tokenize_row`` of TRL, which later releases (1.16 among them) have no more.

Left out on purpose: models with code of their own, and one score for the last step only.
"""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stablerank.errors import RewardError
from stablerank.rewards.process.scoring import Limits, Marked, MarkScorer

RIGHT = 1
LABELS = 2


class TokenClassification(MarkScorer):
    """Scores steps with a token classifier.

    Raises:
        RewardError: the model has another number of labels, or the tokenizer no token for the separator.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, limits: Limits, separator: str = "\n"
    ) -> None:
        super().__init__(model, tokenizer, limits)
        self._separator = self._encoded(separator)
        if model.config.num_labels != LABELS:
            raise RewardError(
                f"the process reward model has {model.config.num_labels} labels, where {LABELS} is right (0 wrong, "
                "1 right); choose a token classifier that TRL's PRMTrainer trained"
            )
        if not self._separator or self._separator[-1] == tokenizer.unk_token_id:
            raise RewardError(
                f"the tokenizer of the process reward model has no token for reward.prm_separator {separator!r}; set "
                "the separator that it was trained with"
            )

    def layout(self, question: str, steps: Sequence[str]) -> Marked:
        """The input of one solution; a mark is the last token of a separator."""
        begin = self._tokenizer.bos_token_id
        ids = [*([] if begin is None else [begin]), *self._encoded(question)]
        marks = []
        for step in steps:
            ids += [*self._encoded(step), *self._separator]
            marks.append(len(ids) - 1)
        return Marked(ids, marks)

    def _encoded(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _read(self, ids_BL: Tensor, mask_BL: Tensor, columns_U: Tensor) -> Tensor:
        logits_BL2 = self._model(input_ids=ids_BL, attention_mask=mask_BL).logits
        right_BU: Tensor = logits_BL2[:, columns_U].float().softmax(-1)[..., RIGHT]
        return right_BU
