"""Prepare a corpus: ``python -m lightning_novograd.recipes.asr.prepare fsdd --root CLONE --out DIR``.

Training does this by itself for a corpus it finds missing; this command is for preparing one ahead of time (on a
login node, in an image) or for having it in a folder of your own. The folder holds train.json, dev.json and test.json
for ``data=manifest`` and all the audio they name.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf

from lightning_novograd.commands.output import writes_to_stdout
from lightning_novograd.errors import LightningNovoGradError
from lightning_novograd.recipes.asr.data.corpora import available_corpora, get_corpus
from lightning_novograd.recipes.asr.data.corpora.base import GeneratedCorpus, prepare_in


@writes_to_stdout
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the corpus is there, 1 with one line on stderr when it cannot be made."""
    parser = argparse.ArgumentParser(prog="prepare", description=(__doc__ or "").partition("\n")[0])
    corpora = {corpus.name: corpus for corpus in map(get_corpus, available_corpora())}
    generated = {name: corpus for name, corpus in corpora.items() if isinstance(corpus, GeneratedCorpus)}
    parser.add_argument("corpus", choices=generated)
    parser.add_argument("--root", help="where the source of the corpus lies")
    parser.add_argument("--out", required=True, type=Path, help="folder to make; it must be new, or hold this corpus")
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="options of the corpus, such as train_size=500")
    arguments = parser.parse_intermixed_args(argv)
    try:
        prepare(generated[arguments.corpus], arguments.out, arguments.root, arguments.options)
    except LightningNovoGradError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(corpus: GeneratedCorpus, out: Path, root: str | None, overrides: Sequence[str] = ()) -> None:
    """Make `corpus` in the folder `out` and print how to train on it."""
    given = {} if root is None else {"root": root}
    options = corpus.options.read(OmegaConf.merge(given, OmegaConf.from_dotlist(list(overrides))), corpus.name)
    manifests = prepare_in(Path(os.path.expanduser(out)), corpus.fingerprint(options), partial(corpus.build, options))
    for split, path in vars(manifests).items():
        rows = path.read_text(encoding="utf-8").count("\n")
        print(f"{split}: {rows} utterances in {path}")
    print("train with: data=manifest " + " ".join(f"data.{split}={path}" for split, path in vars(manifests).items()))


if __name__ == "__main__":
    sys.exit(main())
