"""``resume=auto``: the newest whole checkpoint of the run folder, if it is of this very config."""

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from lightning_novograd.config.data import load_yaml
from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.common.checkpoints.reading import UnreadableError, read_checkpoint
from lightning_novograd.recipes.common.data.steps import GlobalBatch
from lightning_novograd.recipes.common.folder import is_requeued, process_rank
from lightning_novograd.recipes.common.restart.place import saved_position
from lightning_novograd.recipes.common.restart.resume import read_resumed
from lightning_novograd.recipes.common.settings.identity import Identity
from lightning_novograd.recipes.common.settings.run import CommonSettings
from lightning_novograd.recipes.common.way_on import AVERAGE

log = logging.getLogger(__name__)

TORN = "{}.torn"
# what is written when nothing else of its moment is missing; the others are for the day when these are damaged
_FIRST = ("last*.ckpt", "step*.ckpt")
_SHOWN = 8


class Found(NamedTuple):
    """What a run goes on from.

    Args:
        path: of the checkpoint.
        content: of it.
        torn: newer ones that are damaged.
    """

    path: Path
    content: dict[str, Any]
    torn: tuple[Path, ...] = ()


def find_resumed(settings: CommonSettings, run_dir: Path) -> Found | None:
    """What the run goes on from; None if it begins."""
    asked = "resume=auto" if settings.resume == "auto" else "the requeued job" if is_requeued(run_dir) else None
    if asked is not None and (found := newest_checkpoint(run_dir)) is not None:
        log.info("%s goes on from %s", asked, found.path)
        return found
    path = None if settings.resume_from is None else Path(settings.resume_from)
    return None if path is None else Found(path, read_resumed(path))


def newest_checkpoint(run_dir: Path) -> Found | None:
    """The whole checkpoint of a run that is furthest in its training; None where none was written yet.

    Args:
        run_dir: the run folder.

    Raises:
        DataError: there are checkpoints, and all of them are damaged.
        UnreadableError: the system does not let this process read one; other ranks may.
    """
    torn: list[Path] = []
    for path in _furthest_first(run_dir, torn):
        try:
            content = read_resumed(path)
        except UnreadableError:
            raise
        except DataError as error:
            torn.append(path)
            log.warning("%s; the checkpoint before it is taken", error)
            continue
        return Found(path, content, tuple(torn))
    if torn:
        names = ", ".join(sorted(path.name for path in torn))
        raise DataError(f"no checkpoint in {run_dir} is whole ({names}); choose another hydra.run.dir to begin anew")
    return None


def set_torn_aside(torn: tuple[Path, ...]) -> None:
    """Give damaged checkpoints names that nothing takes for checkpoints, on the first rank."""
    if process_rank():
        return
    for path in torn:
        path.replace(path.with_name(TORN.format(path.name)))


def check_same_run(run_dir: Path, cfg: DictConfig | Mapping[str, Any], path: Path, identity: Identity) -> None:
    """Compare the config with that of the run in the folder; what does not matter to its numbers is a warning.

    Args:
        run_dir: of the run that is to go on; nothing is compared if it has kept no config.
        cfg: the composed config.
        path: of the checkpoint that it would go on from.
        identity: what both must have in common.

    Raises:
        ConfigError: they are different trainings.
    """
    kept = run_dir / ".hydra" / "config.yaml"
    if process_rank() or not os.path.isfile(kept):
        return
    saved, ours = (
        _flat(OmegaConf.to_container(one, resolve=True) if OmegaConf.is_config(one) else one)
        for one in (load_yaml(kept), cfg)
    )
    names = [n for n in {**saved, **ours} if saved.get(n) != ours.get(n) and n.split(".")[0] not in identity.silent]
    said = {name: f"{name} was {saved.get(name)!r} and is {ours.get(name)!r}" for name in names}
    if other := [name for name in names if identity.has(name) and not identity.has_moved(name, saved, ours)]:
        problem = f"{run_dir} holds a run of another config: {_shown([said[name] for name in other])}"
        raise ConfigError("resume", f"{problem}; {_all_the_same(path)}, or choose another folder")
    if said:
        log.warning("the run goes on with another config than it began with: %s", _shown([*said.values()]))


def check_same_batch(path: Path, checkpoint: Mapping[str, Any], batch: GlobalBatch) -> None:
    """Refuse another global batch: the learning rate is for the one that the run began with.

    Args:
        path: of the checkpoint that the run goes on from.
        checkpoint: of it.
        batch: of the run that goes on.

    Raises:
        ConfigError: it is another one, however it is split.
    """
    position = saved_position(checkpoint)
    before = None if position is None else GlobalBatch.of(position)
    if position is None or before is None or before.size == batch.size:
        return
    is_between = not 0 < position["delivered"] < position["batches"]
    way = f"{before.kept_by(batch)} keeps it" + (f", {_all_the_same(path)}" if is_between else "")
    raise ConfigError("resume", f"{path} is of a global batch of {before}, not of {batch}; {way}")


def _all_the_same(path: Path) -> str:
    """How a run goes on that resume=auto refuses."""
    return f"resume_from={path} resume=null goes on all the same"


def _furthest_first(run_dir: Path, torn: list[Path]) -> Iterator[Path]:
    """Checkpoints that can be read at all, those first that end a moment; others are added to `torn`."""
    folder = run_dir / "checkpoints"
    first = [path for pattern in _FIRST for path in folder.glob(pattern)] + [*run_dir.glob("hpc_ckpt_*.ckpt")]
    others = [path for path in folder.glob("*.ckpt") if path not in first and path.name != AVERAGE]
    for paths in (first, others):
        reached = {}
        for path in sorted(paths):
            try:
                reached[path] = _progress(read_checkpoint(path, map_location="meta"))
            except UnreadableError:
                raise
            except DataError as error:
                log.warning("%s; the checkpoint before it is taken", error)
                torn.append(path)
        yield from sorted((path for path in reached if reached[path]), key=lambda path: reached[path], reverse=True)


def _progress(checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """Optimizer steps and epochs behind a checkpoint; empty for what is none to go on from, as an average."""
    try:
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        return int(checkpoint["global_step"]), int(epochs)
    except (KeyError, TypeError, ValueError):
        return ()  # type: ignore[return-value]


def _flat(mapping: Any, path: str = "") -> dict[str, Any]:
    """Values by their full key paths; lists are values."""
    if not isinstance(mapping, Mapping):
        return {path: mapping}
    return {
        name: value for key, item in mapping.items() for name, value in _flat(item, f"{path}.{key}".lstrip(".")).items()
    }


def _shown(texts: list[str]) -> str:
    more = f", and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more
