"""Files and measurements of llama.cpp and chatglm.cpp, in an interpreter that has their packages; see cpu_peers.py.

    python benchmarks/peers/theirs.py write|measure PROGRAM MODEL KIND FILE LAYERS THREADS [TOKENS packed|plain]

measure prints a line of JSON: tokens/s of prefill and of one and eight rows, and answers to a fixed prompt.
"""

import json
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from weights import BITS, MATRICES, STEP, bf16, bias, numbers, prompt, q4_0, q8_0

SHAPE = {"chatglm-6b": (130528, 32, 16384, 2048, 130005), "chatglm3-6b": (65024, 2, 13696, 8192, 2)}
PREFILL, BEFORE, ROWS, TOP, CHECKED = 512, 32, 8, 8, 16


def write_gguf(path: Path, model: str, kind: str, layers: int) -> None:
    """A GGUF file of arch chatglm without a vocabulary. Tables of q4_0 models are q8_0, as glmkit's are INT8."""
    import gguf

    vocabulary, kv_heads, inner, positions, _ = SHAPE[model]
    writer = gguf.GGUFWriter(path, "chatglm")
    writer.add_context_length(positions)
    writer.add_embedding_length(4096)
    writer.add_feed_forward_length(inner)
    writer.add_block_count(layers)
    writer.add_head_count(32)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(64)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")
    bits = BITS[kind]
    types = {"int4": gguf.GGMLQuantizationType.Q4_0, "int8": gguf.GGMLQuantizationType.Q8_0}
    types["bf16"] = gguf.GGMLQuantizationType.BF16

    def matrices() -> Iterator[tuple[str, str, str]]:
        table = "int8" if kind == "int4" else kind
        yield "token_embd.weight", "embed", table
        yield "output.weight", "head", table
        for layer in range(layers):
            for theirs, name in (("attn_qkv", "qkv"), ("attn_output", "dense"), ("ffn_up", "up"), ("ffn_down", "down")):
                yield f"blk.{layer}.{theirs}.weight", f"{layer}.{name}", kind

    def floats() -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        yield "output_norm.weight", np.ones(4096, np.float32)
        for layer in range(layers):
            yield f"blk.{layer}.attn_norm.weight", np.ones(4096, np.float32)
            yield f"blk.{layer}.ffn_norm.weight", np.ones(4096, np.float32)
            yield f"blk.{layer}.attn_qkv.bias", bias(f"{layer}.qkv", MATRICES[model]["qkv"][0])

    made = {"int4": q4_0, "int8": q8_0, "bf16": bf16}
    for name, ours, form in matrices():
        rows, columns = MATRICES[model][ours.partition(".")[2]] if "." in ours else (vocabulary, 4096)
        width = {"int4": columns // 32 * 18, "int8": columns // 32 * 34, "bf16": columns * 2}[form]
        writer.add_tensor_info(name, (rows, width), np.dtype(np.uint8), rows * width, raw_dtype=types[form])
    for name, values in floats():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, ours, form in matrices():
        writer.write_tensor_data(made[form](numbers(model, ours, bits), STEP[bits]).view(np.uint8))
    for _, values in floats():
        writer.write_tensor_data(values)
    writer.close()


def write_ggml(path: Path, model: str, kind: str, layers: int) -> None:
    """A file of chatglm.cpp, with a vocabulary of one piece. All matrices have one type there, tables too."""
    vocabulary, kv_heads, inner, positions, eos = SHAPE[model]
    first = model == "chatglm-6b"
    bits, type_, made = BITS[kind], {"int4": 2, "int8": 8}[kind], {"int4": q4_0, "int8": q8_0}[kind]
    stem = "transformer.layers" if first else "transformer.encoder.layers"
    attention = "attention" if first else "self_attention"
    with path.open("wb") as file:
        file.write(b"ggml" + struct.pack("i", 1 if first else 3))
        heads = 32 if first else kv_heads
        sizes = (type_, vocabulary, 4096, 32, heads, layers, inner, 1e-5, 0, 10000.0, positions, eos, 3)
        file.write(struct.pack("iiiiiiiififiii", 2, *sizes))
        pieces = _vocabulary()
        file.write(struct.pack("i", len(pieces)) + pieces)

        def matrix(name: str, ours: str) -> None:
            values = numbers(model, ours, bits)
            _ggml_tensor(file, name, values.shape, type_, made(values, STEP[bits]))

        def vector(name: str, values: npt.NDArray[np.float32]) -> None:
            _ggml_tensor(file, name, values.shape, 0, values)

        def norm(name: str) -> None:
            vector(f"{name}.weight", np.ones(4096, np.float32))
            if first:
                vector(f"{name}.bias", np.zeros(4096, np.float32))

        matrix(
            "transformer.word_embeddings.weight" if first else "transformer.embedding.word_embeddings.weight", "embed"
        )
        for layer in range(layers):
            norm(f"{stem}.{layer}.input_layernorm")
            for theirs, ours in ((f"{attention}.query_key_value", "qkv"), (f"{attention}.dense", "dense")):
                matrix(f"{stem}.{layer}.{theirs}.weight", f"{layer}.{ours}")
                if first or ours == "qkv":
                    vector(f"{stem}.{layer}.{theirs}.bias", bias(f"{layer}.{ours}", MATRICES[model][ours][0]))
            norm(f"{stem}.{layer}.post_attention_layernorm")
            for theirs, ours in (("mlp.dense_h_to_4h", "up"), ("mlp.dense_4h_to_h", "down")):
                matrix(f"{stem}.{layer}.{theirs}.weight", f"{layer}.{ours}")
                if first:
                    vector(f"{stem}.{layer}.{theirs}.bias", bias(f"{layer}.{ours}", MATRICES[model][ours][0]))
        norm("transformer.final_layernorm" if first else "transformer.encoder.final_layernorm")
        if not first:
            matrix("transformer.output_layer.weight", "head")


def _ggml_tensor(file: BinaryIO, name: str, shape: tuple[int, ...], type_: int, values: npt.NDArray[Any]) -> None:
    file.write(struct.pack("i", len(name)) + name.encode())
    file.write(struct.pack("i" * (2 + len(shape)), len(shape), *shape, type_))
    file.seek(-(-file.tell() // 16) * 16)
    values.tofile(file)


def _vocabulary() -> bytes:
    """A sentencepiece model of the pieces <unk> and a, as protobuf."""
    unknown = b"\x0a\x05<unk>" + b"\x15" + struct.pack("<f", 0.0) + b"\x18\x02"
    letter = b"\x0a\x01a" + b"\x15" + struct.pack("<f", -1.0) + b"\x18\x01"
    pieces = b"".join(b"\x0a" + bytes([len(piece)]) + piece for piece in (unknown, letter))
    return pieces + b"\x12\x02\x18\x01" + b"\x1a\x00"


def measure_llama(path: Path, model: str, threads: int, tokens: int, packed: bool) -> dict[str, Any]:
    """Tokens/s by the C interface: no sampling but argmax. packed: weights may be repacked while they are loaded."""
    import llama_cpp as ll

    ll.llama_backend_init()
    how = ll.llama_model_default_params()
    how.use_extra_bufts = packed
    loaded = ll.llama_model_load_from_file(str(path).encode(), how)
    settings = ll.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = ROWS * 1024, PREFILL, PREFILL, ROWS
    settings.n_threads = settings.n_threads_batch = threads
    context = ll.llama_init_from_model(loaded, settings)
    vocabulary = SHAPE[model][0]
    batch = ll.llama_batch_init(PREFILL, 0, 1)

    def feed(entries: list[tuple[int, int, int]]) -> npt.NDArray[np.float32]:
        """Logits of the last entry of every sequence; entries: token, position, sequence, in order of sequences."""
        last = {sequence: place for place, (_, _, sequence) in enumerate(entries)}
        batch.n_tokens = len(entries)
        for place, (token, position, sequence) in enumerate(entries):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            batch.logits[place] = last[sequence] == place
        if ll.llama_decode(context, batch):
            sys.exit("llama_decode failed")
        rows = [
            np.ctypeslib.as_array(ll.llama_get_logits_ith(context, place), (vocabulary,)) for place in last.values()
        ]
        return np.stack(rows)

    def answer(rows: int, count: int, ids: list[int]) -> tuple[list[int], float, npt.NDArray[np.float32]]:
        """Greedy ids of the first row, seconds of the steps behind the prompts, logits behind the first prompt."""
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        logits = np.concatenate([feed([(token, at, row) for at, token in enumerate(ids)]) for row in range(rows)])
        first, chosen, begun = logits[0].copy(), [], time.perf_counter()
        for step in range(count):
            best = logits.argmax(1)
            chosen.append(int(best[0]))
            logits = feed([(int(token), len(ids) + step, row) for row, token in enumerate(best)])
        return chosen, time.perf_counter() - begun, first

    checked, _, logits = answer(1, CHECKED, prompt(model, 16))
    prefill = 0.0
    for seed in (1, 3):
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        long = [(token, at, 0) for at, token in enumerate(prompt(model, PREFILL, seed))]
        begun = time.perf_counter()
        feed(long)
        prefill = max(prefill, PREFILL / (time.perf_counter() - begun))
    one, many = (rows * tokens / answer(rows, tokens, prompt(model, BEFORE, 2))[1] for rows in (1, ROWS))
    top = {int(token): float(logits[token]) for token in np.argsort(-logits)[:TOP]}
    return {"prefill": prefill, "one": one, "eight": many, "ids": checked, "top": top}


def measure_chatglm(path: Path, model: str, tokens: int) -> dict[str, Any]:
    """Tokens/s of one row; it has no batches. Its threads are the physical cores, without an option."""
    import chatglm_cpp
    from chatglm_cpp import _C

    lm = chatglm_cpp.Pipeline(str(path), max_length=1024).model
    greedy = _C.GenerationConfig(max_length=1024, do_sample=False)

    def answer(ids: list[int], count: int) -> tuple[list[int], float, float]:
        """Greedy ids, seconds of the prompt with the first token, seconds of the others."""
        row, before = list(ids), len(ids)
        begun = time.perf_counter()
        row.append(lm.generate_next_token(row, None, greedy, 0, before))
        read = time.perf_counter()
        for _ in range(count - 1):
            row.append(lm.generate_next_token(row, None, greedy, len(row) - 1, before))
        return row[before:], read - begun, time.perf_counter() - read

    checked, _, _ = answer(prompt(model, 16), CHECKED)
    seconds = min(answer(prompt(model, PREFILL, seed), 1)[1] for seed in (1, 3))
    _, _, steps = answer(prompt(model, BEFORE, 2), tokens + 1)
    return {"prefill": PREFILL / seconds, "one": tokens / steps, "eight": None, "ids": checked, "top": None}


def main() -> None:
    action, program, model, kind, file, layers, threads, *rest = sys.argv[1:]
    path = Path(file)
    if action == "write":
        (write_gguf if program == "llama.cpp" else write_ggml)(path, model, kind, int(layers))
        return
    tokens = int(rest[0])
    if program == "llama.cpp":
        print(json.dumps(measure_llama(path, model, int(threads), tokens, rest[1] == "packed")))
    else:
        print(json.dumps(measure_chatglm(path, model, tokens)))


if __name__ == "__main__":
    main()
