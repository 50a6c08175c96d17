"""The finished trainings of a comparison, one JSON object a line, so that a call that was broken off can go on."""

import fcntl
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar


class Trial(Hashable, Protocol):
    """A training to be done: a dataclass whose fields tell it from the others."""

    def row(self) -> dict[str, Any]:
        """The fields, and what follows from them that a reader wants to see."""
        ...


TrialT = TypeVar("TrialT", bound=Trial)
OutcomeT = TypeVar("OutcomeT")


@dataclass(frozen=True)
class Kind(Generic[TrialT, OutcomeT]):
    """The dataclasses that the lines of a file are made of.

    Args:
        trial: what was run.
        outcome: what came of it.
    """

    trial: type[TrialT]
    outcome: type[OutcomeT]

    def read(self, path: Path) -> tuple[dict[str, Any], dict[TrialT, OutcomeT]]:
        """Settings and finished trials of a file; a last line without an end is not one.

        Raises:
            SystemExit: a trial of today's would be another one than that of the file.
        """
        settings: dict[str, Any] = {}
        outcomes: dict[TrialT, OutcomeT] = {}
        for row in _rows(path):
            if "settings" in row:
                settings = row["settings"]
                continue
            trial = self.trial(**_fields(self.trial, row))
            for name, value in trial.row().items():
                if row[name] != value:
                    raise SystemExit(f"{path}: {trial} was run with {name} {row[name]}: the trials were others then")
            outcomes[trial] = self.outcome(**_fields(self.outcome, row))
        return settings, outcomes


class RunsFile(Generic[TrialT, OutcomeT]):
    """Finished trials behind a line of the settings that they share.

    Args:
        path: of the file; made if it is not there.
        settings: of this call. Those under `fixed` must be the file's.
        fixed: keys of what makes runs comparable.
        kind: of trials and outcomes.

    Raises:
        SystemExit: another call writes to it, or it holds runs of other settings.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], fixed: Iterable[str], kind: Kind[TrialT, OutcomeT]
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(f"{path}: another call is writing to it") from None
        self._drop_torn_line()
        if path.stat().st_size == 0:
            self._write({"settings": dict(settings)})
        known, self.outcomes = kind.read(path)
        for name in fixed:
            if known.get(name) != settings.get(name):
                raise SystemExit(f"{path} has runs with {name} {known.get(name)!r}, not {settings.get(name)!r}")

    def add(self, trial: TrialT, outcome: OutcomeT, **more: Any) -> None:
        """Keep a finished trial."""
        self._write({**trial.row(), **vars(outcome), **more})
        self.outcomes[trial] = outcome

    def close(self) -> None:
        self._file.close()

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def _drop_torn_line(self) -> None:
        """What a killed call has not finished writing."""
        self._file.seek(0)
        text = self._file.read()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._file.truncate(len(whole.encode()))


def _fields(kind: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in kind.__dataclass_fields__}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)
