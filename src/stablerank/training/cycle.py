"""Where a checkpoint may fall: on whole generation cycles.

TRL samples one generation batch, takes several steps on it and then samples afresh. When it resumes inside such a cycle
it samples at once, so that a run resumed there would not be the run that was interrupted.
"""

import math


def generation_cycle(accumulation: int, steps_per_generation: int | None, iterations: int) -> int:
    """Optimiser steps in one generation cycle, from TRL's settings of these names (`GRPOConfig`)."""
    micro_steps = (steps_per_generation or accumulation) * iterations
    return math.lcm(micro_steps, accumulation) // accumulation
