import numpy as np
import pytest

from stablerank.errors import ModelError, RecipeError
from stablerank.rewards.scorers.answers import Answer, joined
from stablerank.rewards.scorers.model_pass import ModelPass
from stablerank.rewards.scorers.specs import build_scorers, parse

STUDENT = "zoo:arith-student"
OWN_PASS = (
    *("stable_rank", "effective_rank", "participation_ratio", "condition_number", "rankme", "pca95"),
    *("mean_logprob", "self_certainty", "token_entropy"),
)
CONTROLS = ("shorter", "longer", "random")
ANSWERS = [Answer("1+2=?\n", "1+2=3\n\\boxed{3}"), Answer("2+2=?\n", "4")]


def table(names, **settings):
    return joined([scorer.score(ANSWERS) for scorer in build_scorers(names, STUDENT, template="bare", **settings)])


def test_scores_of_one_model_and_layout_share_a_pass():
    names = [*OWN_PASS, "stable_rank:scope=response,layer=-2,center=true", *CONTROLS, "random:seed=1"]
    scorers = build_scorers(names, STUDENT, template="bare")
    assert [type(scorer).__name__ for scorer in scorers][:1] == ["ModelPass"]
    assert sum(isinstance(scorer, ModelPass) for scorer in scorers) == 1
    scores = joined([scorer.score(ANSWERS) for scorer in scorers])
    assert set(scores.names) == set(names)
    assert scores.statuses == ("scored", "scored") and np.isfinite(scores.values_NS).all()


@pytest.mark.parametrize(
    "option",
    ["scope=response", "layer=2", "layer=before_norm", "center=true", "template=answer", "window=8", "eos=false"],
)
def test_each_option_moves_the_score_and_nothing_else(option):
    scores = table(["stable_rank", f"stable_rank:{option}"])
    assert scores.column("stable_rank")[0] != scores.column(f"stable_rank:{option}")[0]
    assert scores.column("stable_rank")[0] == table(["stable_rank"]).column("stable_rank")[0]


def test_an_option_is_the_setting_for_one_scorer():
    by_option = table(["stable_rank:window=8,truncate=left"]).values_NS
    assert np.array_equal(by_option, table(["stable_rank"], window=8, truncate="left").values_NS)


def test_other_layouts_have_other_passes_of_one_loaded_model():
    short, other = build_scorers(["stable_rank", "stable_rank:window=8"], STUDENT, template="bare")
    assert short.frozen is other.frozen


def test_controls_need_no_model():
    scorers = build_scorers(CONTROLS)
    assert [scorer.score(ANSWERS).values_NS[0, 0] for scorer in scorers[:2]] == [-15, 15]


def test_principal_components_are_centred_unless_said_otherwise():
    assert [parse(name).view.center for name in ("pca95", "pca95:center=false", "rankme", "rankme:center=true")] == [
        *(True, False, False, True)
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stablerank", "there is no scorer 'stablerank'; choose one of stable_rank, effective_rank, "),
        ("stable_rank:scop=all", "the scorer stable_rank has no option 'scop'; its options are model, template, "),
        ("stable_rank:scope=some", "scope='some' of the scorer stable_rank is refused .*'all' or 'response'"),
        ("stable_rank:window=0", "window='0' of the scorer stable_rank is refused .*greater than 0"),
        ("stable_rank:layer=top", "layer='top' of the scorer stable_rank is refused"),
        ("stable_rank:all", "option 'all' of the scorer 'stable_rank:all' is not KEY=VALUE, each key once; its opt"),
        ("stable_rank:layer=1,layer=2", "option 'layer=2' .* is not KEY=VALUE, each key once"),
        ("random:kind=judge", "is not KEY=VALUE, each key once; its options are seed"),
        ("mean_logprob:scope=all", "the scorer mean_logprob has no option 'scope'"),
    ],
)
def test_what_means_nothing_is_one_sentence_with_the_choices(name, message):
    with pytest.raises(RecipeError, match=message) as caught:
        parse(name)
    assert "\n" not in str(caught.value) and "pydantic" not in str(caught.value)


def test_what_cannot_be_built_is_said():
    with pytest.raises(RecipeError, match="'random' is asked for twice; name each once"):
        build_scorers(["random", "random"])
    with pytest.raises(
        RecipeError, match="the scorer rankme runs a model and none is named; give one, such as zoo:NAME"
    ):
        build_scorers(["rankme"])
    with pytest.raises(ModelError, match="zoo:arith-student has no chat template; choose another template: plain,"):
        build_scorers(["rankme"], STUDENT)
    with pytest.raises(RecipeError, match="layer=9 is not among the 5 layers of zoo:arith-student"):
        build_scorers(["rankme:layer=9"], STUDENT, template="bare")
