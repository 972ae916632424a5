"""Where the identifiers of Python source are."""

import io
import keyword
import tokenize


def identifiers(text: str) -> list[tuple[int, int]] | None:
    """Character spans [start, end) of every identifier in code, in order; None where `text` is not Python we can read.

    Keywords are left out (`match`, `case` and `type` count as identifiers, which they usually are), and so is
    everything inside comments, strings and, before Python 3.12, f-strings.
    """
    starts = [0]
    for line in io.StringIO(text):  # lines as `tokenize` counts them: "\n" alone ends one
        starts.append(starts[-1] + len(line))
    spans = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                start = starts[token.start[0] - 1] + token.start[1]
                spans.append((start, start + len(token.string)))
    except (tokenize.TokenError, SyntaxError):  # IndentationError is a SyntaxError
        return None
    return spans
