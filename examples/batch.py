"""Many prompts in one batch: several answers to each, the most likely one first.

    python examples/batch.py demo/model "import " "def read" --answers 3

For files of prompts there is `glm generate MODEL --input in.jsonl --output out.jsonl`, which can be stopped and
started again.
"""

import argparse

import glmkit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory")
    parser.add_argument("prompts", nargs="+", help="what to go on with")
    parser.add_argument("--answers", type=int, default=2, help="to each prompt")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    lm = glmkit.load(args.model)
    options = {"n": args.answers, "temperature": 0.8, "seed": args.seed, "max_new_tokens": 24, "logprobs": 0}
    # Prompts of any lengths run side by side, and each answer is what it would be alone.
    for prompt, answers in zip(args.prompts, lm.answers(args.prompts, **options), strict=True):
        print(repr(prompt))
        scored = [(sum(token.logprob for token in answer.logprobs or ()), answer) for answer in answers]
        for score, answer in sorted(scored, key=lambda pair: -pair[0]):
            print(f"  {score:8.2f}  {answer.finish:6}  {answer.text!r}")


if __name__ == "__main__":
    main()
