"""Prepare a corpus: ``python -m lightning_novograd.recipes.asr.prepare fsdd --root CLONE --out DIR``.

Training makes the small corpora by itself where it finds them missing; this command is for making one ahead of time
(on a login node, in an image), for having it in a folder of your own, and for LibriSpeech, which is too large to be
fetched on the way. With ``--root`` nothing is downloaded: it names a clone, the archives or what they hold. Downloads
go on where an earlier call broke off. The last lines name the manifests and how to train on them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from lightning_novograd.commands.output import writes_to_stdout
from lightning_novograd.errors import LightningNovoGradError
from lightning_novograd.recipes.asr.data.corpora import available_corpora, get_corpus
from lightning_novograd.recipes.asr.data.corpora.base import PreparedCorpus


@writes_to_stdout
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the corpus is there, 1 with one line on stderr when it cannot be, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="prepare", description=(__doc__ or "").partition("\n")[0])
    corpora = {corpus.name: corpus for corpus in map(get_corpus, available_corpora())}
    prepared = {name: corpus for name, corpus in corpora.items() if isinstance(corpus, PreparedCorpus)}
    parser.add_argument("corpus", choices=prepared)
    parser.add_argument("--root", help="where the source of the corpus lies")
    parser.add_argument("--out", required=True, type=Path, help="folder to make; it must be new, or hold this corpus")
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="options of the corpus, such as train_size=500")
    arguments = parser.parse_intermixed_args(argv)
    try:
        prepare(prepared[arguments.corpus], arguments.out, arguments.root, arguments.options)
    except LightningNovoGradError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def prepare(corpus: PreparedCorpus, out: Path, root: str | None, overrides: Sequence[str] = ()) -> None:
    """Make `corpus` in the folder `out` and print how to train on it."""
    given = {} if root is None else {"root": root}
    options = corpus.options.read(OmegaConf.merge(given, OmegaConf.from_dotlist(list(overrides))), corpus.name)
    folder = out.expanduser()
    manifests = corpus.prepare_in(options, folder)
    made: dict[str, Path | None] = {**vars(manifests), **corpus.more(options, folder)}
    for name, path in made.items():
        if path is None:
            continue
        rows = path.read_text(encoding="utf-8").count("\n")
        print(f"{name}: {rows} utterances in {path}")
    print(f"train with: {corpus.how_to_train(options, folder, manifests)}")


if __name__ == "__main__":
    sys.exit(main())
