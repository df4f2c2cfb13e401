"""The tables of docs/diagnose.md."""

from tables import load, table


def diagnose_faults() -> str:
    """One line a kind of run: what its seeds were called, from the run folder and from the log alone."""
    kinds: dict[str, list[dict]] = {}
    for run in load("diagnose_faults")["runs"]:
        kinds.setdefault(run["kind"], []).append(run)
    rows = [
        [runs[0]["about"], _code(runs[0]["cause"]), _named(runs), _named([run["from_log_alone"] for run in runs])]
        for runs in kinds.values()
    ]
    return table("run | its fault | named | named from `trainer_state.json` alone", rows)


def diagnose_counts() -> str:
    names = {
        "faults": "faults named first",
        "healthy": "healthy runs without a problem",
        "faults_from_log_alone": "faults named first, from the log alone",
        "healthy_from_log_alone": "healthy runs without a problem, from the log alone",
    }
    counts = load("diagnose_faults")["counts"]
    rows = [
        [name, f"{found['right']} of {found['runs']}", f"{100 * found['low']:.0f} to {100 * found['high']:.0f} %"]
        for key, name in names.items()
        if (found := counts.get(key))
    ]
    return table("reading | right | 95 % interval (Clopper-Pearson)", rows)


def _named(runs: list[dict]) -> str:
    said = [", ".join(map(_code, run["named"][:1])) or "nothing" for run in runs]
    return "; ".join(f"{said.count(one)} x {one}" for one in dict.fromkeys(said))


def _code(name: str | None) -> str:
    return f"`{name}`" if name else "none"
