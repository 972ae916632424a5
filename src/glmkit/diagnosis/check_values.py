"""Reading every number of a checkpoint once, for NaN, infinity and matrices of zeros."""

from collections.abc import Callable

import torch
from torch import Tensor

from glmkit.errors import names_text

from .finding import Finding
from .headers import Headers, attempt, tensor_names

_CHUNK = 1 << 22  # numbers looked at together: a few MiB of anonymous memory, whatever the tensor


def check_numbers(headers: Headers, progress: Callable[[int], None] = lambda count: None) -> list[Finding]:
    """Findings per file. `progress` is called with the bytes of each tensor that was read."""
    findings: list[Finding] = []
    for name, file in headers.files.items():
        broken: list[str] = []
        zeros: list[str] = []
        for tensor_name in tensor_names(file):
            info = file.info(tensor_name)
            counts, finding = attempt(lambda file=file, key=tensor_name: _count(file.read(key)), file.path)  # type: ignore[misc]
            file.release(tensor_name)
            progress(info.nbytes)
            if finding is not None:
                findings.append(finding)
                continue
            assert counts is not None
            bad, nonzero = counts
            if bad:
                broken.append(f"{tensor_name} ({bad:,} of {info.numel:,})")
            elif not nonzero and len(info.shape) == 2:
                zeros.append(tensor_name)
        if broken:
            what = f"{name} holds numbers that are not finite: {names_text(broken)}"
            step = "the model would answer nonsense; download it again, or take an earlier checkpoint"
            findings.append(Finding("error", what, str(file.path), step))
        if zeros:
            what = f"{name} holds matrices of zeros: {names_text(zeros)}"
            step = "right for a fresh LoRA adapter; elsewhere the file was not written completely"
            findings.append(Finding("warning", what, str(file.path), step))
        if not broken and not zeros:
            what = f"{name}: {len(file.keys())} tensors read, all numbers finite"
            findings.append(Finding("ok", what, str(file.path)))
    return findings


def _count(tensor: Tensor) -> tuple[int, bool]:
    """(numbers that are NaN or infinite, whether any number is not zero), chunk by chunk."""
    bad, nonzero = 0, False
    rows = tensor.reshape(1) if tensor.dim() == 0 else tensor
    width = max(1, rows[0].numel()) if rows.shape[0] else 1
    for chunk in torch.split(rows, max(1, _CHUNK // width)):
        if chunk.dtype.is_floating_point:
            bad += int((~torch.isfinite(chunk)).sum())
        nonzero = nonzero or bool((chunk != 0).any())
    return bad, nonzero
