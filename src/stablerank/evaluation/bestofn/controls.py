"""What a scorer has to beat: choosing without reading states.

Legend: M answers to one problem.

- ``random``: any of the N, which is the mean at every N.
- ``majority``: the final answer that most of the N give (majority.py); needs no model but a readable final answer.
- ``shortest``, ``longest``: by generated tokens where the pool has them, else by characters.
- ``oracle``: right if any of the N is, pass@N; the ceiling of every chooser.
- ``greedy``: the answer of greedy decoding, where the pool has one; the paper's N = 1. It draws nothing, so it is the
  same at every N.

All are exact over the subsets of size N, like the scorers they stand beside.
"""

import numpy as np

from stablerank.evaluation.bestofn.estimator import Floats, expected_picks
from stablerank.evaluation.bestofn.keys import Equal, answer_classes
from stablerank.evaluation.bestofn.majority import expected_votes
from stablerank.evaluation.bestofn.pools import Pool, Problem
from stablerank.evaluation.pass_at_k import pass_at_k

CONTROLS = ("random", "majority", "shortest", "longest", "oracle", "greedy")
COMPARED = ("random", "shortest", "longest", "majority")
"""Whom every chooser is compared with, problem by problem."""


def control_picks(pool: Pool, problem: Problem, equal: Equal) -> dict[str, Floats]:
    """The expected correctness of each control's pick for N = 1..M; ``greedy`` only where there is one."""
    right_M, lengths_M = np.array(problem.right_M), np.array(pool.lengths(problem), dtype=float)
    found = {
        "random": np.full(len(right_M), right_M.mean()),
        "majority": expected_votes(answer_classes(problem.keys, equal), right_M),
        "shortest": expected_picks(-lengths_M, right_M),
        "longest": expected_picks(lengths_M, right_M),
        "oracle": np.array([pass_at_k([right_M], tries)[0] for tries in range(1, len(right_M) + 1)]),
    }
    return found if problem.greedy is None else {**found, "greedy": np.full(len(right_M), problem.greedy)}
