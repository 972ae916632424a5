"""Talk to `glm serve` with the official OpenAI client, and fill blanks over HTTP.

glm serve chatglm-6b &
python examples/serve_client.py --chat "Who are you?"
python examples/serve_client.py --fill "The capital of France is [MASK]."
"""

import argparse

import httpx
import openai


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where `glm serve` listens")
    parser.add_argument("--key", default="unused", help="one of the server's keys, where it has any")
    parser.add_argument("--chat", metavar="QUERY", help="ask this")
    parser.add_argument("--complete", metavar="TEXT", help="go on with this")
    parser.add_argument("--fill", metavar="TEXT", help="fill the [MASK] of this")
    args = parser.parse_args()
    client = openai.OpenAI(base_url=f"{args.url}/v1", api_key=args.key)
    model = client.models.list().data[0].id
    if args.chat:
        messages = [{"role": "user", "content": args.chat}]
        for chunk in client.chat.completions.create(model=model, messages=messages, max_tokens=64, stream=True):
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()
    if args.complete:
        answer = client.completions.create(model=model, prompt=args.complete, max_tokens=32, temperature=0)
        print(args.complete + answer.choices[0].text)
    if args.fill:
        headers = {"Authorization": f"Bearer {args.key}"}
        reply = httpx.post(f"{args.url}/v1/infill", json={"text": args.fill}, headers=headers, timeout=600)
        reply.raise_for_status()
        print(reply.json()["text"])


if __name__ == "__main__":
    main()
