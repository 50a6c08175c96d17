"""Tiny language models in the ARPA format: one of words, one of letters."""

from pathlib import Path

# decimal logarithms of n-grams and back-off weights
WORDS = {
    ("<unk>",): (-2.0, 0.0),
    ("<s>",): (-99.0, -0.3),
    ("</s>",): (-0.9, 0.0),
    ("ab",): (-0.6, -0.2),
    ("ba",): (-0.7, -0.25),
    ("b",): (-1.5, -0.1),
    ("<s>", "ab"): (-0.2, 0.0),
    ("ab", "ba"): (-0.5, 0.0),
    ("ba", "</s>"): (-0.4, 0.0),
    ("ab", "</s>"): (-0.8, 0.0),
}
LETTERS = {
    ("<unk>",): (-2.0, 0.0),
    ("<s>",): (-99.0, -0.3),
    ("</s>",): (-0.9, 0.0),
    ("a",): (-0.6, -0.2),
    ("b",): (-0.7, -0.25),
    ("|",): (-0.8, -0.1),
    ("<s>", "a"): (-0.2, 0.0),
    ("a", "b"): (-0.1, 0.0),
    ("b", "|"): (-0.3, 0.0),
}


def write_arpa(path: Path, grams: dict[tuple[str, ...], tuple[float, float]]) -> Path:
    orders = [{k: v for k, v in grams.items() if len(k) == n} for n in (1, 2)]
    lines = ["\\data\\", *(f"ngram {n}={len(order)}" for n, order in enumerate(orders, 1))]
    for n, order in enumerate(orders, 1):
        lines += ["", f"\\{n}-grams:", *(f"{p}\t{' '.join(k)}\t{back}" for k, (p, back) in order.items())]
    path.write_text("\n".join([*lines, "", "\\end\\", ""]))
    return path
