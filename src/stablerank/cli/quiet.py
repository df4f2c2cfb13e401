"""Keep the libraries underneath quiet, so that what a user reads on stderr is ours: bars, or one sentence."""


def quiet_libraries() -> None:
    """Silence progress bars, advice and log lines of transformers, datasets, TRL and accelerate."""
    import logging
    import warnings

    import datasets
    import transformers

    # What upstream will rename in its next major version is ours to know, not the user's.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"peft\.")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name, level in (("accelerate", logging.ERROR), ("datasets", logging.CRITICAL)):
        logging.getLogger(name).setLevel(level)
