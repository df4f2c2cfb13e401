"""A study that locks and runs as it stands: what `stablerank study new` writes."""

from pathlib import Path

from stablerank.errors import RunFolderError
from stablerank.runs.atomic import write_text
from stablerank.studies.layout import StudyFolder

RECIPE = "recipe.yaml"
PLAN = """\
# A plan is written before its results exist. Change anything here, then:
#   stablerank study lock FOLDER      hashes this file and all it depends on; from then on nothing may change
#   stablerank study run FOLDER       runs what is missing, also after a crash
#   stablerank study verdict FOLDER   computes what came of it; nobody types a result
question: Does a very short GRPO run leave the student as able as it was, and do its matrices differ from the teacher's?

# confirmatory: needs clean, committed code. exploratory: runs anywhere, and is marked so for ever.
mode: exploratory

# Every arm runs once with each seed. Three or more seeds say something about other seeds; two hardly do.
seeds: [0, 1]

# What is done. `train` runs a recipe; `measure` certifies the stable rank of every matrix of a checkpoint.
arms:
  grpo:
    kind: train
    spec: recipe.yaml
    overrides:
      - trainer.max_steps=2
      - trainer.per_device_train_batch_size=32
      - evaluation.problems=64
      - evaluation.every=0
      - geometry.every=2
    difficulty: 1           # the most difficult arms run first
  student:
    kind: measure
    spec: zoo:arith-student
  teacher:
    kind: measure
    spec: zoo:arith-teacher

# What is claimed, the rule that confirms it, and the rule that ends the search early. Rules: difference, equivalence,
# trend, ordering, rate, baseline. Columns of train cells: pass_at_1_before, pass_at_1_after, pass_at_1_gain,
# mean_stable_rank, train_seconds; of measure cells: stable_rank, median_stable_rank, matrices.
hypotheses:
  harmless:
    claim: Two steps of GRPO move pass@1 by less than 0.25.
    rule: {kind: equivalence, column: pass_at_1_gain, arm: grpo, margin: 0.25}
    kill: {kind: difference, column: pass_at_1_gain, arm: grpo, margin: 0.25, direction: less}
  flatter:
    claim: The student's matrices have a higher stable rank than the teacher's.
    rule: {kind: difference, column: stable_rank, arm: student, against: teacher}

# How far a column is expected to scatter; from this, locking says what the study could detect.
spread:
  pass_at_1_gain: {between: 0.005, within: 0.1, units: 64}
  stable_rank: {between: 0.01, shared: 1.0, units: 29}

# Rules that must not hold. If one does, the study is invalid: it would have confirmed anything.
traps:
  miracle: {kind: difference, column: pass_at_1_gain, arm: grpo, margin: 0.5}

# Rules that must hold. If one does not, the study is invalid: it could not have seen anything.
controls:
  student-works: {kind: rate, column: pass_at_1_before, arm: grpo, at_least: 0.1}
"""


def write_template(folder: Path, recipe: str) -> None:
    """Write ``plan.yaml`` and the recipe it names into a new study folder.

    Raises:
        RunFolderError: there is a plan already, or no folder can be made.
    """
    study = StudyFolder(folder)
    if study.plan_path.exists():
        raise RunFolderError(f"{study.plan_path} exists; edit it, or choose another folder.")
    try:
        write_text(folder / RECIPE, recipe)
        write_text(study.plan_path, PLAN)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be made a folder ({error.strerror}); choose another one.") from error
