"""The folder that an evaluation leaves.

::

    evaluation.json           the settings; results, once everything is in
    model/greedy/             answers, one row a problem (Parquet); `model/sampled/` likewise
    against/greedy/ ...       those of the other model

Contract: a start with the same settings goes on where the last one stopped; other settings, or another content, are
refused by name and nothing is overwritten. Settings include the problems themselves and size and time of every model
file. What can be computed from the answers (the ks, the bar to pass) is no setting.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stablerank.errors import RunFolderError
from stablerank.runs.atomic import write_json
from stablerank.runs.tables import ShardedTable

META = "evaluation.json"


@dataclass(frozen=True)
class EvaluationFolder:
    """One evaluation on disk."""

    path: Path

    def claim(self, settings: dict[str, Any]) -> None:
        """Begin here, or go on.

        Raises:
            RunFolderError: the folder holds other settings or something else, or cannot be written.
        """
        settings = json.loads(json.dumps(settings))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # What a killed write leaves is hidden.
            if all(path.name.startswith(".") for path in self.path.iterdir()):
                write_json(self.path / META, {"settings": settings, "complete": False})
        except OSError as error:
            raise RunFolderError(
                f"{self.path} cannot be made a folder ({error.strerror or error}); choose another one with `--out`."
            ) from error
        self._require_same(settings)

    def pool(self, which: str, decoding: str) -> ShardedTable:
        """The answers of ``model`` or ``against``, ``greedy`` or ``sampled``."""
        return ShardedTable(self.path / which / decoding)

    def complete(self, settings: dict[str, Any], results: dict[str, Any]) -> None:
        """Write the results beside the settings."""
        try:
            write_json(self.path / META, {"settings": settings, "complete": True, **results})
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be written ({error.strerror or error}); make room.") from error

    def _require_same(self, settings: dict[str, Any]) -> None:
        held = self._held()
        if held == settings:
            return
        if held is None:
            raise RunFolderError(f"{self.path} holds something else than an evaluation; choose another `--out`.")
        key = next(key for key in {**held, **settings} if held.get(key) != settings.get(key))
        raise RunFolderError(
            f"{self.path} holds an evaluation with {key}={_short(held.get(key))}, not {_short(settings.get(key))}; "
            "choose another `--out`, or delete the folder."
        )

    def _held(self) -> dict[str, Any] | None:
        try:
            settings = json.loads((self.path / META).read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return settings if isinstance(settings, dict) else None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
