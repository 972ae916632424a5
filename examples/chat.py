"""A conversation: replies as they are written, and the history that goes from turn to turn.

python examples/chat.py chatglm3-6b "Who wrote Dream of the Red Chamber?" "In which century?"
"""

import argparse

import glmkit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory of a chat family")
    parser.add_argument("queries", nargs="+", help="what to say, turn by turn")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="longest reply")
    parser.add_argument("--temperature", type=float, default=None, help="0 is greedy (default: the family's)")
    args = parser.parse_args()
    lm = glmkit.load(args.model)
    options = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature}
    history = []
    for query in args.queries:
        print(f"> {query}")
        for step in lm.chat_steps(query, history, **options):
            print(step.piece, end="", flush=True)  # only text that no later token can change
        history = step.history
        print(f"\n  ({step.tokens} tokens, ended by {step.finish})")
    # What the turns before had in common with the prompt was not read again.
    counters = lm.engine.counters
    print(f"{counters.reused_tokens} prompt tokens were in the cache, {counters.read_tokens} were read")


if __name__ == "__main__":
    main()
