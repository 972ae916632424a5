"""Write on from a text, each piece shown as soon as it is certain, until a line is complete.

python examples/stream.py demo/model "import " --temperature 0.8 --seed 7
"""

import argparse
from contextlib import closing

import glmkit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory")
    parser.add_argument("text", help="what to go on with")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text")
    parser.add_argument("--lines", type=int, default=1, help="stop after so many")
    args = parser.parse_args()
    lm = glmkit.load(args.model)
    print(args.text, end="", flush=True)
    pieces = lm.stream(args.text, max_new_tokens=64, temperature=args.temperature, seed=args.seed)
    shown = ""
    with closing(pieces):  # leaving this block cancels what was not written yet
        for piece in pieces:
            print(piece, end="", flush=True)
            shown += piece
            if shown.count("\n") >= args.lines:
                break
    print()


if __name__ == "__main__":
    main()
