"""Fill the blanks of a text, and see what came into each.

python examples/fill_blanks.py demo/model "def first(items):\n    return [MASK]"
"""

import argparse

import glmkit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory; its family must fill blanks")
    parser.add_argument("texts", nargs="+", help="texts with [MASK]; \\n is a new line")
    parser.add_argument("--max_tokens", type=int, default=32, help="longest answer for one blank")
    args = parser.parse_args()
    lm = glmkit.load(args.model)
    texts = [text.replace("\\n", "\n") for text in args.texts]
    # All texts in one batch; each result is the one that `lm.fill(text)` gives.
    for text, filled in zip(texts, lm.fill_many(texts, max_tokens=args.max_tokens), strict=True):
        print(text, "becomes", filled.text, sep="\n")
        for number, (blank, ids) in enumerate(zip(filled.blanks, filled.ids, strict=True), 1):
            print(f"  blank {number}: {blank!r} ({len(ids)} tokens)")


if __name__ == "__main__":
    main()
