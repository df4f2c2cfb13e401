"""The verbs, gathered."""

import typer

from stablerank.cli import (
    adapt,
    bestofn,
    cell,
    compress,
    condition,
    demo,
    diagnose,
    doctor_verb,
    evaluate,
    export,
    inspect_reward,
    measure,
    rate_distortion,
    report,
    rewardbench,
    score,
    study,
    train,
    zoo,
)

app = typer.Typer(
    name="stablerank",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Post-train language models, watch the spectral geometry of what changes, measure any checkpoint.\n\n"
        "New here? Run `stablerank demo`: about three minutes on two CPU cores, ends with a report.\n\n"
        "Then `stablerank measure PATH` on a model or adapter of yours, or `stablerank train RECIPE` (see recipes/)."
    ),
)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("measure")(measure.measure)
app.command("condition")(condition.condition)
app.command("score")(score.score)
app.command("rewardbench")(rewardbench.rewardbench)
app.command("bestofn")(bestofn.bestofn)
app.command("inspect-reward")(inspect_reward.inspect_reward)
app.command("adapt")(adapt.adapt)
app.command("compress")(compress.compress)
app.command("rate-distortion")(rate_distortion.rate_distortion)
app.command("report")(report.report)
app.command("diagnose")(diagnose.diagnose)
app.command("export")(export.export)
app.command("doctor")(doctor_verb.doctor)
app.add_typer(study.app, name="study")
app.add_typer(zoo.app, name="zoo")
app.command("cell", hidden=True)(cell.cell)
