"""Manifest rows of recordings and what is said in them."""

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from lightning_novograd.commands.output import whole_file
from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.data.audio import read_header
from lightning_novograd.recipes.asr.data.download.progress import progress
from lightning_novograd.recipes.common.data.workers import workers


class Recording(NamedTuple):
    """An audio file, what is said in it, and by whom."""

    audio: Path
    text: str
    speaker: str


def write_manifest(path: Path, recordings: Sequence[Recording], *, inside: Path | None = None) -> None:
    """A manifest, whole or not there, with the exact durations that the files' headers have.

    Args:
        path: the manifest; its folder is made.
        recordings: in the order of its lines.
        inside: paths of audio below this folder are relative to the manifest's, so that both can be moved together;
            others are absolute.

    Raises:
        DataError: a recording is missing or no audio.
        ConfigError: the manifest cannot be written.
    """

    def row(recording: Recording) -> str:
        audio = recording.audio.absolute()
        named = (
            os.path.relpath(audio, path.parent.absolute())
            if inside and audio.is_relative_to(inside.absolute())
            else audio
        )
        entry = {
            "audio_filepath": str(named),
            "duration": read_header(recording.audio).seconds,
            "text": recording.text,
            "speaker": recording.speaker,
        }
        return json.dumps(entry) + "\n"

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(str(path), f"cannot be written: {error.strerror}") from error
    with (
        whole_file(path) as partial,
        open(partial, "w", encoding="utf-8") as file,
        progress(f"read {path.stem}", len(recordings), unit=" files") as bar,
        ThreadPoolExecutor(min(16, 2 * workers())) as pool,  # a header is some reads, mostly waiting
    ):
        for line in pool.map(row, recordings):
            file.write(line)
            bar.advance(1)


def join_manifests(path: Path, manifests: Iterable[Path]) -> None:
    """One manifest from several in the same folder, whole or not there.

    Raises:
        ConfigError: it cannot be written.
    """
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for manifest in manifests:
            file.write(manifest.read_text(encoding="utf-8"))
