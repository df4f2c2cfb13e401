"""Fill the tables of the docs from `benchmarks/results/*.json`: `python scripts/write_results.py [--check]`.

A table stands between `<!-- results: NAME -->` and `<!-- end -->`; no number in it is typed by hand. Words after the
name choose rows of the tables about adapters. Where there is no results file, a sentence says so. With `--check`
nothing is written, and a table that differs from its results file fails (part of `make docs`).
"""

import argparse
import json
import re
import sys
from collections.abc import Callable

import adapter_tables
import alarm_tables
import bestofn_tables
import chain_tables
import collapse_tables
import compression_tables
import correlates_tables
import diagnosis_tables
import diversity_tables
import overfitting_tables
import pair_model_tables
import pairs_tables
import scorer_tables
import self_judge_tables
import spectral_tables
import sr_tables
import study_tables
from tables import RESULTS, ROOT, load, table

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- results: (\w+)([\w ]*) -->\n).*?(<!-- end -->)", re.DOTALL)
MISSING = "Not measured yet.\n"


def percent(interval: dict[str, float]) -> str:
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def points(interval: dict[str, float]) -> str:
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"


def demo_seeds() -> str:
    rows = [
        [
            str(run["seed"]),
            percent(run["pass_at_1_before"]),
            percent(run["pass_at_1_after"]),
            points(run["pass_at_1_gain"]),
            f"{run['train_seconds']:.0f} s",
            f"{run['peak_memory_bytes'] / 1e9:.2f} GB",
        ]
        for run in load("demo_seeds")["runs"]
    ]
    return table("seed | pass@1 before | after | gain | training | peak memory", rows)


def demo_tuning() -> str:
    rows = [
        [
            run["setting"],
            *(f"{100 * run['curve'][step]:.0f} %" for step in ("10", "20", "30")),
            percent(run["pass_at_1_after"]),
            f"{run['mean_stable_rank']:.2f}",
        ]
        for run in load("demo_tuning")["runs"]
    ]
    return table("setting | step 10 | step 20 | step 30 | after 60 | mean stable rank", rows)


def telemetry_cost(name: str = "telemetry_cost") -> str:
    results = load(name)
    named = {"wall time, with : without": "ratio_with_to_without", "share clocked inside the run": "share_inside"}
    rows = [[name, *(f"{results[key][part]:.4f}" for part in ("value", "low", "high"))] for name, key in named.items()]
    pairs = len(results["train_seconds_with"])
    return table(f"measure ({pairs} interleaved pairs) | value | 95 % low | 95 % high", rows)


def kill_resume() -> str:
    rows = []
    for title, name in {"demo": "kill_resume", "demo, num_iterations=2": "kill_resume_two_iterations"}.items():
        results = load(name)
        stages = [kill["stage"] for kill in results["kills"]]
        where = ", ".join(f"{stages.count(stage)} {stage}" for stage in dict.fromkeys(stages))
        rows.append([title, str(len(stages)), where, "equal" if results["passed"] else "differ"])
    return table("run | kills | where | tables against the unbroken run", rows)


def measure() -> str:
    over_ours = ("svd_lowrank(q=8, niter=2)", "Gram + eigvalsh", "svdvals", "weightwatcher 0.7.7", "diffract 0.3.1")
    rows = []
    for case, timings in load("measure").items():
        ours = timings["ours, certified"]
        floors = [_ratio(ours, timings.get(name)) for name in ("limit", "plain read")]
        rivals = [_ratio(timings.get(name), ours) for name in over_ours]
        wrong = timings.get(over_ours[0])
        rivals[0] += f", {100 * wrong['worst_error']:.2g} % wrong" if wrong else ""
        rows.append([case, f"{ours['seconds']:.3g} s", *floors, *rivals, f"{ours['worst_error']:.0e}"])
    return table(
        "tensors | ours | over limit | over plain read | svd_lowrank | Gram + eigvalsh | svdvals | WeightWatcher "
        "| diffract | our worst error",
        rows,
    )


def _ratio(above: dict[str, float] | None, below: dict[str, float] | None) -> str:
    if above is None or below is None:
        return ""
    ratio = above["seconds"] / below["seconds"]
    return f"{ratio:.2g}x" if ratio < 100 else f"{ratio:,.0f}x"


def measure_scale() -> str:
    whole = json.loads((RESULTS / "measure_scale.json").read_text())
    size = f"{whole['settings']['bytes'] / 1e9:.2f} GB"
    rows = [
        [size, str(run["jobs"]), str(run["matrices"]), f"{run['seconds']:.0f} s", f"{run['peak_bytes'] / 1e9:.2f} GB"]
        for run in whole["results"]["runs"]
    ]
    return table("checkpoint | jobs | matrices | time | peak memory", rows)


def measure_coverage() -> str:
    results = load("measure_coverage")
    bounds = {"upper bound, all": results["upper"]["all"], "upper bound, worst case": results["upper"]["lonely top"]}
    bounds |= {"lower bound": results["lower"]}
    bounds |= {"control: a start that knows the matrix": results["orthogonal_start_control"]}
    rows = [
        [
            name,
            str(count["trials"]),
            str(count["misses"]),
            f"{count['rate']:.4f} ({count['low']:.4f} to {count['high']:.4f})",
        ]
        for name, count in bounds.items()
    ]
    return table("bound | trials | misses | rate (95 %, Clopper-Pearson)", rows)


def process_alignment() -> str:
    rows = [
        [
            row["tokenizer"],
            "whole text" if row["ids"] == "whole" else "in pieces",
            f"{row['exact']} of {row['steps']}",
            f"{row['cuts_exact']} of {row['cuts']}",
            f"{row['by_separator_ids']} of {row['steps']}",
        ]
        for row in load("process_alignment")["alignment"]
    ]
    return table("tokenizer | encoded | steps exact | cut solutions exact | by the separator's ids", rows)


def process_first_wrong() -> str:
    rows = [
        [
            found["data"],
            f"{found['steps']} ({found['steps_within_context']})",
            *(f"{auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})" for auc in found["auc"].values()),
        ]
        for found in load("process_alignment")["first_wrong_step"]
    ]
    return table("data | steps (within context) | embedded model | step index | step length", rows)


def credit_bias() -> str:
    results = load("credit_bias")
    *_, largest = results
    rows = []
    for name, found in results[largest].items():
        # The relative bias is the tangent of the angle whose cosine is told.
        biases = [results[size][name]["cosine"][found["nearest"]]["median"] ** -2 - 1 for size in results]
        rows.append(
            [
                re.sub(r"^\w+", r"`\g<0>`", name),
                found["nearest"],
                *(f"{100 * max(bias, 0) ** 0.5:.0f} %" for bias in biases),
                f"{100 * found['bias']['high']:.0f} %",
                *(f"{found[key]['median']:.2f}" for key in ("noise", "pay_for_length")),
            ]
        )
    sizes = " | ".join(f"bias, {size}" for size in results)
    return table(f"rule | nearest objective | {sizes} | worst, {largest} | noise | pay for length", rows)


def densities() -> str:
    rows = [
        [recipe, str(run["seed"]), str(run["steps"]), percent(run["pass_at_1_after"]), points(run["pass_at_1_gain"])]
        for recipe, runs in load("densities").items()
        for run in runs
    ]
    return table("recipe | seed | steps | pass@1 after | gain", rows)


def process_curve() -> str:
    (run,) = load("densities_validation")["process"]
    rows = [
        [
            str(point["step"]),
            f"{100 * point['pass_at_1']:.1f} %",
            f"{point['reward']:.2f}",
            f"{point['mean_length']:.1f}",
        ]
        for point in run["curve"]
    ]
    return table("step | pass@1 on validation | mean process reward in training | tokens", rows)


def shared_forward() -> str:
    rows = [
        [
            place.removeprefix("zoo:"),
            row["arms"],
            row["part"],
            f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
            "" if row["goal"] is None else f"{row['goal']:g}",
        ]
        for place, found in load("shared_forward").items()
        for row in found["ratios"]
    ]
    return table("model | ratio of | part of the step | ratio (95 %) | at most", rows)


def shared_forward_memory() -> str:
    rows = [
        [place.removeprefix("zoo:"), name, f"{peak / 1e6:.0f} MB", f"{peak / max(found['peak_bytes'].values()):.2f}"]
        for place, found in load("shared_forward").items()
        for name, peak in found.get("peak_bytes", {}).items()
    ]
    return table("model | arm | peak above the loaded policy | ratio to the largest", rows)


def distillation_beside_trl() -> str:
    names = {"ours": "our GRPO, distillation reward", "trl": "TRL's `DistillationTrainer`"}
    found = load("distillation_beside_trl")
    rows = [
        [names[run["method"]], str(run["seed"]), percent(run["pass_at_1_before"]), percent(run["pass_at_1_after"])]
        for run in found["runs"]
    ]
    rows.append(["ours less TRL's, over seeds", "", "", points(found["gain_less_trl"])])
    return table("method | seed | pass@1 before | after", rows)


def smollm2_gym() -> str:
    rows = []
    for run in load("smollm2_gym")["runs"]:
        passed = [percent(run[f"pass_at_1_{name}"]) for name in ("before", "after")]
        rows.append([str(run["seed"]), str(run["steps"]), *passed, points(run["pass_at_1_gain"])])
    return table("seed | steps | pass@1 before | after | gain", rows)


BLOCKS: dict[str, Callable[..., str]] = {
    "alarms": alarm_tables.alarms,
    "alarm_runs": alarm_tables.alarm_runs,
    "alarms_ceiling": alarm_tables.alarms_ceiling,
    "alarm_thresholds": alarm_tables.alarm_thresholds,
    "bestofn_pools": bestofn_tables.pools,
    "bestofn_student": bestofn_tables.student,
    "bestofn_gsm8k": bestofn_tables.gsm8k,
    "bestofn_chain_sum": bestofn_tables.chain_sum,
    "bestofn_gcd": bestofn_tables.gcd,
    "bestofn_ties": bestofn_tables.ties,
    "bestofn_costs": bestofn_tables.costs,
    "collapse": collapse_tables.collapse,
    "collapse_differences": collapse_tables.collapse_differences,
    "collapse_deceived": collapse_tables.collapse_deceived,
    "collapse_structure": collapse_tables.collapse_structure,
    "collapse_contrasts": collapse_tables.collapse_contrasts,
    "collapse_chain_links": chain_tables.links,
    "collapse_chain_events": chain_tables.events,
    "collapse_chain_lags": chain_tables.lags,
    "collapse_chain_order": chain_tables.order,
    "collapse_chain_pairs": chain_tables.pairs,
    "collapse_chain_rules": chain_tables.rules,
    "compress_speed": compression_tables.compress_speed,
    "compress_points": compression_tables.compress_points,
    "compress_accuracy": compression_tables.compress_accuracy,
    "compress_bytes": compression_tables.compress_bytes,
    "compress_ranks": compression_tables.compress_ranks,
    "compress_deltas": compression_tables.compress_deltas,
    "compress_error_deltas": compression_tables.compress_error_deltas,
    "compress_claims": compression_tables.compress_claims,
    "compress_omegas": compression_tables.compress_omegas,
    "compress_chosen": compression_tables.compress_chosen,
    "correlates": correlates_tables.correlates,
    "correlates_all": correlates_tables.correlates_all,
    "interventions": correlates_tables.interventions,
    "interventions_beside": correlates_tables.interventions_beside,
    "layer_sweep": correlates_tables.layer_sweep,
    "mechanisms": correlates_tables.mechanisms,
    "template_sweep": correlates_tables.template_sweep,
    "window_sweep": correlates_tables.window_sweep,
    "pair_model": pair_model_tables.pair_model,
    "pairs_sets": pairs_tables.pairs_sets,
    "pairs_accuracy": pairs_tables.pairs_accuracy,
    "pairs_subsets": pairs_tables.pairs_subsets,
    "scorer_cost": scorer_tables.scorer_cost,
    "self_judge_gap": self_judge_tables.self_judge_gap,
    "self_judge_left_out": self_judge_tables.self_judge_left_out,
    "spectral_relu": spectral_tables.relu,
    "spectral_relu_verdicts": spectral_tables.relu_verdicts,
    "spectral_features": spectral_tables.features,
    "spectral_features_verdicts": spectral_tables.features_verdicts,
    "spectral_cost": spectral_tables.cost,
    "spectral_initial_chains": spectral_tables.initial_chains,
    "spectral_initial_models": spectral_tables.initial_models,
    "spectral_initial_verdicts": spectral_tables.initial_verdicts,
    "spectral_one_step": spectral_tables.one_step,
    "spectral_one_step_verdicts": spectral_tables.one_step_verdicts,
    "spectral_spiked": spectral_tables.spiked,
    "spectral_spiked_verdicts": spectral_tables.spiked_verdicts,
    "spectral_sparse": spectral_tables.sparse,
    "spectral_sparse_verdicts": spectral_tables.sparse_verdicts,
    "spectral_nanogpt": spectral_tables.nanogpt,
    "spectral_nanogpt_blocks": spectral_tables.nanogpt_blocks,
    "spectral_nanogpt_verdicts": spectral_tables.nanogpt_verdicts,
    "spectral_factorisation": spectral_tables.factorisation,
    "spectral_factorisation_verdicts": spectral_tables.factorisation_verdicts,
    "spectral_worlds": study_tables.spectral_worlds,
    "sr_grpo": sr_tables.sr_grpo,
    "sr_grpo_right_length": sr_tables.sr_grpo_right_length,
    "sr_grpo_contrasts": sr_tables.sr_grpo_contrasts,
    "sr_grpo_long": sr_tables.sr_grpo_long,
    "sr_grpo_smollm2": sr_tables.sr_grpo_smollm2,
    "sr_diversity": diversity_tables.levels,
    "sr_diversity_less": diversity_tables.differences,
    "diagnose_faults": diagnosis_tables.diagnose_faults,
    "diagnose_counts": diagnosis_tables.diagnose_counts,
    "demo_seeds": demo_seeds,
    "demo_tuning": demo_tuning,
    "telemetry_cost": telemetry_cost,
    "kill_resume": kill_resume,
    "credit_bias": credit_bias,
    "densities": densities,
    "process_curve": process_curve,
    "distillation_beside_trl": distillation_beside_trl,
    "shared_forward": shared_forward,
    "shared_forward_memory": shared_forward_memory,
    "smollm2_gym": smollm2_gym,
    "measure": measure,
    "outcome_reward": study_tables.outcome_reward,
    "overfitting_detector": overfitting_tables.detector,
    "overfitting_one_checkpoint": overfitting_tables.one_checkpoint,
    "update_directions": overfitting_tables.directions,
    "gradient_lags": overfitting_tables.gradient_lags,
    "gradient_course": overfitting_tables.gradient_course,
    "overfitting_arms": study_tables.overfitting_arms,
    "overfitting_lengths_arms": study_tables.overfitting_lengths_arms,
    "overfitting_lengths_verdict": study_tables.overfitting_lengths_verdict,
    "overfitting_verdict": study_tables.overfitting_verdict,
    "overfitting_widths_arms": study_tables.overfitting_widths_arms,
    "overfitting_widths_verdict": study_tables.overfitting_widths_verdict,
    "rank_one_gradients": overfitting_tables.rank_one_gradients,
    "process_alignment": process_alignment,
    "process_first_wrong": process_first_wrong,
    "measure_scale": measure_scale,
    "measure_coverage": measure_coverage,
    "adapters_contract": adapter_tables.adapters_contract,
    "adapters_cost": adapter_tables.adapters_cost,
    "adapters_cost_parts": adapter_tables.adapters_cost_parts,
    "adapters_geometry": adapter_tables.adapters_geometry,
    "adapters_init": adapter_tables.adapters_init,
    "adapters_init_energy": adapter_tables.adapters_init_energy,
    "adapters_masks": adapter_tables.adapters_masks,
    "adapters_published": adapter_tables.adapters_published,
    "adapters_start": adapter_tables.adapters_start,
    "adapters_step": adapter_tables.adapters_step,
    "adapters_training": adapter_tables.adapters_training,
    "adapters_tuning": adapter_tables.adapters_tuning,
}


def filled(text: str) -> str:
    return BLOCK.sub(lambda match: match[1] + body(match[2], match[3].split()) + match[4], text)


def body(name: str, words: list[str]) -> str:
    try:
        return BLOCKS[name](*words)
    except FileNotFoundError:
        return MISSING


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    stale = [path for path in DOCS if filled(path.read_text()) != path.read_text()]
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'stale, run scripts/write_results.py' if is_check else 'filled'}")
        if not is_check:
            path.write_text(filled(path.read_text()))
    return int(bool(stale) and is_check)


if __name__ == "__main__":
    sys.exit(main())
