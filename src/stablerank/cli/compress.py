"""`stablerank compress`."""

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stablerank.errors import RecipeError

if TYPE_CHECKING:
    from stablerank.compression.compress import Compressed
    from stablerank.compression.spec import Group

Method = Literal["kmeans", "affine", "symmetric", "nf4", "fp16"]


def compress(
    adapter: Annotated[str, typer.Argument(help="An adapter's or run's folder; with --expand, a compressed file.")],
    out: Annotated[Path, typer.Option(help="The file to write; with --expand, the folder.")],
    method: Annotated[Method, typer.Option(help="Codebook, even levels, NF4, or fp16 alone.")] = "kmeans",
    bits: Annotated[int | None, typer.Option(help="Bits a value, 1 to 8 (default: 5; nf4 has 4).")] = None,
    group: Annotated[
        str, typer.Option(help="What shares a codebook or scale: tensor, row, or a number of values.")
    ] = "tensor",
    rank: Annotated[int | None, typer.Option(help="Cut each update to so many directions first.")] = None,
    energy: Annotated[float | None, typer.Option(help="Cut to this share of the squared singular values.")] = None,
    entropy: Annotated[bool, typer.Option(help="Write codes by zstd where that is shorter.")] = True,
    sine: Annotated[bool, typer.Option("--sine", help="Put the best sine on a LoRA, after its training.")] = False,
    base: Annotated[str | None, typer.Option(help="Where the base is, if not where the adapter says.")] = None,
    measure: Annotated[bool, typer.Option(help="Measure what each update lost.")] = True,
    expand: Annotated[bool, typer.Option("--expand", help="Write a compressed file as a plain PEFT folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="What was written as JSON on stdout.")] = False,
) -> None:
    """Write an adapter as one smaller file, and say what was lost.

    The file loads in one line: `stablerank.load_compressed(FILE)`. A SineLoRA's sine is applied at load.
    """
    from rich.console import Console

    with Console(stderr=True).status("loading torch and peft"):
        from stablerank.cli.quiet import quiet_libraries

        quiet_libraries()
        from stablerank.compression.compress import compress as run
        from stablerank.compression.compress import expand as run_expand
        from stablerank.compression.spec import CompressionSpec

    if expand:
        found = run_expand(adapter, out)
        print(f"{len(found.tensors)} tensors of an adapter of {found.base or 'an unnamed base'} written to {out}")
        return
    spec = CompressionSpec(method, bits, group_of(group), rank, energy, entropy, sine)
    with Console(stderr=True).status("compressing"):
        done = run(adapter, out, spec, base=base, measure=measure)
    print(_json(done) if json else _text(done))


def group_of(text: str) -> "Group":
    """What `--group` says."""
    if text in ("tensor", "row"):
        return text  # type: ignore[return-value]
    if not text.isdigit():
        raise RecipeError(f"Group {text!r} is neither `tensor`, `row` nor a number of values such as 64.")
    return int(text)


def _text(done: "Compressed") -> str:
    from stablerank.compression.losses import summary

    account, spec = done.account, done.spec
    lines = [
        f"{spec.method}, {spec.bits} bits, a scale or codebook a {spec.group}: {done.file}",
        f"{account.file:,} bytes, {100 * account.share:.1f} % of {account.fp16:,} in fp16, "
        f"{8 * account.file / account.values:.2f} bits a value",
        f"codes {account.payload:,}, codebooks {account.codebooks:,}, index {account.index:,}, "
        f"header {account.header:,}",
        f"base {done.base or 'without a name'}, {'fingerprint kept' if done.fingerprint else 'not looked at'}",
    ]
    if done.frequency is not None:
        best = done.frequency.best
        lines.append(
            f"sine omega {best.omega:.3g}, gain {best.gain:.3g}: error {100 * best.error:.2f} %, "
            f"without a sine {100 * done.frequency.linear:.2f} %"
        )
    if done.losses:
        found = summary(done.losses)
        lines += [
            f"error of an update: median {100 * found.median_error:.2g} %, largest {100 * found.largest_error:.2g} % "
            f"({found.worst})",
            f"size of an update {found.median_norm_ratio:.3f} of what it was, stable rank "
            f"{found.stable_rank_before:.2f} -> {found.stable_rank_after:.2f} (medians)",
        ]
    loading = f'model = stablerank.load_compressed("{done.file}")'
    return "\n".join([*lines, "", "import stablerank", loading])


def _json(done: "Compressed") -> str:
    """Strict JSON: what is not defined is null."""
    losses = [
        {key: None if isinstance(value, float) and not abs(value) < float("inf") else value for key, value in row}
        for row in (asdict(loss).items() for loss in done.losses)
    ]
    facts = {
        "file": str(done.file),
        **asdict(done.spec),
        **asdict(done.account),
        "bytes": done.account.file,
        "share": done.account.share,
        "base": done.base,
        "base_fingerprint": done.fingerprint or None,
        "frequency": None if done.frequency is None else asdict(done.frequency.best),
        "losses": losses,
    }
    return json_module.dumps(facts, indent=2, allow_nan=False)
