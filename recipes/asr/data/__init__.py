"""From a manifest's line to a batch: corpora, manifest, audio, dataset, sampler, loader, and the data module."""
