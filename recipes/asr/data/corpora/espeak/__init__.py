"""The corpus that eSpeak NG speaks; worker.py is the process that loads the library, and nothing imports it."""

from lightning_novograd.recipes.asr.data.corpora.espeak.digits import EspeakDigits, EspeakOptions

__all__ = ["EspeakDigits", "EspeakOptions"]
