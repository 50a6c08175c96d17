"""What others have published, as a run keeps it beside its own results."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_published(folder: Path, manifest: Path) -> dict[str, Any] | None:
    """Published error rates of a run's recipe, from its ``results.json``.

    Args:
        folder: of the run.
        manifest: of the set that is measured; its name without the ending is looked for among theirs.

    Returns:
        `source`, a text; `wer`, fractions by the name of the set; `here`, that of the set that is measured, or None.
        None where nothing is published, or the file says nothing that can be shown.
    """
    try:
        found = json.loads((folder / "results.json").read_text(encoding="utf-8")).get("published")
        source, wer = str(found["source"]), dict(found["wer"])
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None
    rates = {str(name): float(rate) for name, rate in wer.items() if _is_rate(rate)}
    names = {_plain(name): name for name in rates}
    here = names.get(_plain(manifest.stem))
    if here is None and isinstance(found, Mapping):
        # the run knows which of them its own sets are
        same = [name for name, rate in rates.items() if rate == found.get(f"{manifest.stem}_wer")]
        here = same[0] if same else None
    return {"source": source, "wer": rates, "here": here} if rates else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
