"""`stablerank adapt`."""

import json as json_module
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stablerank.errors import RecipeError

if TYPE_CHECKING:
    from stablerank.adapters.adapt import Adapted
    from stablerank.adapters.prepare import Progress

Form = Literal["native", "lora", "residual"]

_HALVES = (
    "At the start its halves cancel up to rounding, and elsewhere both would train;\n"
    "to train the method itself, take `--form native` or `--form residual`."
)


def adapt(
    model: Annotated[str, typer.Argument(help="zoo:NAME, a model folder or hub id; or an adapter's or run's folder.")],
    out: Annotated[Path, typer.Option(help="A folder that is empty or does not exist.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Of the method, such as `r=16 rho=0.2`.")
    ] = None,
    spec: Annotated[str | None, typer.Option(help="Method to start on a model; a wrong one lists them all.")] = None,
    form: Annotated[
        Form | None,
        typer.Option(help="Default: native for a model, lora for an adapter."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, typer.Option(help="Of the residual base (default: float32).")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Of an adapter, if its base is not where it says.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Text, one sample a line, for eva and corda.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of what is drawn (default: 0).")] = None,
    json: Annotated[bool, typer.Option("--json", help="What was written as JSON on stdout.")] = False,
) -> None:
    """Start a geometry-aware adapter on a model, or write an adapter in another form.

    native keeps the method as it is and needs `import stablerank.peft`; lora is plain LoRA on the untouched base, for
    any PEFT program or server; residual is a base of its own and plain LoRA on it, for any trainer.
    """
    from rich.console import Console

    with Console(stderr=True).status("loading torch, transformers and peft"):
        from stablerank.cli.quiet import quiet_libraries

        quiet_libraries()
        from stablerank.adapters.adapt import adapter_folder
    if dtype is not None and form != "residual":
        raise RecipeError("`--dtype` is of the base that `--form residual` writes; drop it, or ask for that form.")
    folder = adapter_folder(model)
    try:
        if folder is None:
            done = _start(model, spec, settings or [], out, form or "native", dtype, base, calibration, seed)
        else:
            if spec is not None or settings or calibration is not None or seed is not None:
                raise RecipeError(f"{model} is an adapter already: drop `--spec` and what belongs to it.")
            done = _convert(folder, out, form or "lora", dtype, base)
    except KeyboardInterrupt:
        print("stablerank: interrupted; nothing was written.", file=sys.stderr)
        raise typer.Exit(130) from None
    print(json_module.dumps(_facts(done), indent=2) if json else _text(done))


def _start(
    model: str,
    spec: str | None,
    settings: list[str],
    out: Path,
    form: Form,
    dtype: str | None,
    base: str | None,
    calibration: Path | None,
    seed: int | None,
) -> "Adapted":
    import torch

    from stablerank.adapters.adapt import adapt, parse_spec

    if spec is None:
        raise RecipeError(f"{model} is no adapter, so say which to start on it, such as `--spec geora`.")
    if base is not None:
        raise RecipeError(f"`--base` is of an adapter's folder, and {model} is none; drop it.")
    chosen = parse_spec(spec, settings)
    with _bar() as progress:
        return adapt(
            model,
            chosen,
            out,
            form,
            dtype=getattr(torch, dtype or "float32"),
            calibration=calibration,
            seed=seed or 0,
            progress=progress,
        )


def _convert(folder: Path, out: Path, form: Form, dtype: str | None, base: str | None) -> "Adapted":
    import torch
    from rich.console import Console

    from stablerank.adapters.adapt import convert

    with Console(stderr=True).status("loading the base and the adapter"):
        return convert(folder, out, form, dtype=getattr(torch, dtype or "float32"), base=base)


def _facts(done: "Adapted") -> dict[str, object]:
    residual = done.residual
    return {
        "method": done.method,
        "form": done.form,
        **{key: value if key != "folder" else str(value) for key, value in asdict(done.adapter).items()},
        "trainable": done.trainable,
        "residual": residual
        and {
            "base": str(residual.base),
            "dtype": residual.dtype,
            "error": residual.error,
            "worst": residual.worst,
        },
        "load": _snippet(done),
    }


def _text(done: "Adapted") -> str:
    written = done.adapter
    lines = [
        f"{done.method} adapter ({done.form}) in {written.folder}",
        f"rank {written.rank}, {done.trainable:,} trainable parameters, {written.bytes / 1e6:.1f} MB in fp32",
        f"valid on {written.base}",
    ]
    if done.residual is not None:
        lines.append(
            f"residual in {done.residual.dtype}: base plus adapter misses the original by at most "
            f"{done.residual.error:.1e}\nof the largest weight of a matrix ({done.residual.worst})"
        )
    if done.starts_doubled:
        lines.append(_HALVES)
    return "\n".join([*lines, "", _snippet(done)])


def _snippet(done: "Adapted") -> str:
    """How to load it."""
    training = "" if done.form == "lora" else ", is_trainable=True"
    return "\n".join(
        [
            *(["import stablerank.peft"] if done.needs_us else []),
            "from peft import AutoPeftModelForCausalLM",
            f'model = AutoPeftModelForCausalLM.from_pretrained("{done.adapter.folder}"{training})',
        ]
    )


@contextmanager
def _bar() -> Iterator["Progress"]:
    """A bar with layers on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("starting layers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # Into a file or a pipe a bar would leave an empty line.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("starting", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
