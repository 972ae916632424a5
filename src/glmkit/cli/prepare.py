"""`glm prepare INPUT... --output DIR`: text to a tokenizer and a memory-mapped token store."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from dataclasses import fields
from pathlib import Path
from typing import get_args

from glmkit.cli.parser import add_hub_argument
from glmkit.cli.printing import print_json
from glmkit.data.build_store import Prepared, prepare
from glmkit.data.encoding import usable_cores
from glmkit.data.rows import Format, ReadOptions
from glmkit.data.sources import FORMATS
from glmkit.data.store import MANIFEST_FILE, TokenStore
from glmkit.data.streams import LINE_LIMIT
from glmkit.errors import DataError
from glmkit.families.vocabularies import load_tokenizer
from glmkit.progress import Progress
from glmkit.tokenizer.protocol import Tokenizer
from glmkit.tokenizer.training import DEFAULT_SAMPLE_BYTES, DEFAULT_VOCAB_SIZE, MIN_VOCAB_SIZE

EPILOG = f"""known suffixes: {" ".join(FORMATS)}, each also with .gz or .zst.
A text file is one document unless it is split; elsewhere a row is. Directories are read recursively; quote globs.
A name that is no file ("org/name", "org/name:config", "hub:name") is read from the Hugging Face hub.
example: glm prepare books/ 'news/*.jsonl.gz' --text-field content --vocab-size 16000 --output prepared
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="file, directory, glob or dataset of the hub")
    add("--output", required=True, metavar="DIR", help="the store to write; appears only when complete")
    add("--overwrite", action="store_true", help="replace an existing store")

    add = parser.add_argument_group("reading").add_argument
    field_help = "field or column with the text, a.b for a nested one (default text)"
    add("--text-field", default="text", metavar="NAME", help=field_help)
    format_help = "of all files; default auto: by suffix. With a format named, directories give every file"
    add("--format", default="auto", choices=get_args(Format), help=format_help)
    encoding_help = "of text, JSON and tables, such as gb18030, big5, shift_jis, latin-1, utf-16 (default utf-8)"
    add("--encoding", default="utf-8", metavar="NAME", help=encoding_help)
    add("--delimiter", metavar="CHAR", help="between the columns of .csv files (default: by the header, comma first)")
    add("--split-lines", action="store_true", help="text files: each line is a document")
    add("--split-blank-lines", action="store_true", help="text files: blank lines separate documents")
    cut_help = f"text files: longer documents are cut at line ends (default {LINE_LIMIT:,})"
    add("--max-document-bytes", type=int, default=LINE_LIMIT, metavar="BYTES", help=cut_help)
    add("--keep-crlf", action="store_true", help="text files: keep CR LF line ends (default: become LF)")
    bad_help = "stop at a row without usable text (default error), or leave it out and count it"
    add("--on-bad-row", default="error", choices=["error", "skip"], help=bad_help)
    add("--max-documents", type=int, metavar="N", help="stop after N documents (default: all)")
    add("--hub-split", default="train", metavar="NAME", help="split of hub datasets (default train)")

    add = parser.add_argument_group("tokenizer").add_argument
    tokenizer_help = (
        "use the tokenizer of this store or model (any published one, or a hub name) instead of training one"
    )
    add("--tokenizer", metavar="DIR", help=tokenizer_help)
    add_hub_argument(add, "hub of a --tokenizer that is no directory here")
    vocabulary_help = (
        f"tokens, the special ones included, at least {MIN_VOCAB_SIZE} "
        f"(default {DEFAULT_VOCAB_SIZE:,}, or as many as the text gives)"
    )
    add("--vocab-size", type=int, metavar="N", help=vocabulary_help)
    add("--tokenizer-type", choices=["bpe", "unigram"], help="to train (default bpe)")
    sample_help = f"text that the tokenizer is trained on at most, chosen by hash (default {DEFAULT_SAMPLE_BYTES:,})"
    add("--tokenizer-sample-bytes", type=int, metavar="BYTES", help=sample_help)

    add = parser.add_argument
    share_help = "of the documents, chosen by hash, from 0 to below 1 (default 0.01)"
    add("--validation-share", type=float, default=0.01, metavar="SHARE", help=share_help)
    add("--drop-duplicates", action="store_true", help="leave out exact copies of earlier documents")
    add("--workers", type=int, metavar="N", help="encoding processes (default: one for each processor)")
    add("--quiet", action="store_true", help="no progress on stderr")
    add("--json", action="store_true", help="print the manifest and the remarks as JSON")


def run(args: Namespace) -> int:
    if args.split_lines and args.split_blank_lines:
        raise DataError("--split-lines and --split-blank-lines exclude each other; choose one")
    read = ReadOptions(
        split_text="lines" if args.split_lines else "blank_lines" if args.split_blank_lines else "file",
        **{item.name: getattr(args, item.name) for item in fields(ReadOptions) if item.name != "split_text"},
    )
    if args.tokenizer is not None:
        for name in ("vocab_size", "tokenizer_type", "tokenizer_sample_bytes"):
            if getattr(args, name) is not None:
                option = name.replace("_", "-")
                raise DataError(f"--{option} has no effect on a given tokenizer; leave out it or --tokenizer")
    with Progress(quiet=args.quiet) as progress:
        tokenizer = None
        if args.tokenizer is not None:
            from glmkit.checkpoint.hub import local_directory  # brings torch, which is not needed else

            folder = local_directory(args.tokenizer, hub=args.hub, need="tokenizer", progress=progress)
            tokenizer = _tokenizer(folder)
        result = prepare(
            args.inputs,
            args.output,
            tokenizer=tokenizer,
            vocab_size=args.vocab_size,
            tokenizer_type=args.tokenizer_type or "bpe",
            sample_bytes=DEFAULT_SAMPLE_BYTES if args.tokenizer_sample_bytes is None else args.tokenizer_sample_bytes,
            validation_share=args.validation_share,
            drop_duplicates=args.drop_duplicates,
            read=read,
            replace=args.overwrite,
            workers=args.workers if args.workers is not None else usable_cores(),
            progress=progress,
        )
    if args.json:
        facts = {"directory": str(result.directory), "notes": result.notes, "manifest": result.manifest}
        print_json(facts, indent=2)
    else:
        print(_summary(result))
    return 0


def _tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a store or of a model directory."""
    return TokenStore(directory).tokenizer() if (directory / MANIFEST_FILE).is_file() else load_tokenizer(directory)


def _summary(result: Prepared) -> str:
    manifest = result.manifest
    tokenizer = manifest["tokenizer"]
    lines = [f"wrote {result.directory}: {tokenizer['kind']} tokenizer of {tokenizer['vocab_size']:,} tokens"]
    for name, split in manifest["splits"].items():
        density = f", {split['text_bytes'] / split['tokens']:.2f} bytes a token" if split["tokens"] else ""
        lines.append(
            f"  {name:<10} {split['documents']:>12,} documents {split['tokens']:>15,} tokens"
            f" {split['text_bytes']:>15,} bytes of text{density}"
        )
    return "\n".join(lines + [f"note: {note}" for note in result.notes])
