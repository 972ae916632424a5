"""Models that glmkit does not run, by the names of their tensors and by their config: what each is, and what to do.

They are told before any layout is tried, for many have most names of a model that is read: its own weights packed by
another program, or the language half of a model of pictures.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from .family import all_families

_UNPACK = (
    "take the original weights and give --quantize int4 (quantize='int4' in Python), or dequantise these and save them"
)
# Patterns of names that only such a file has, what it is, and the next step. The first that fits is it.
_PACKED = tuple(
    (re.compile(pattern), what)
    for pattern, what in (
        (r".*\.quant_state\.bitsandbytes__nf4", "weights quantised by bitsandbytes (nf4)"),
        (r".*\.quant_state\.bitsandbytes__\w+", "weights quantised by bitsandbytes (4 bits)"),
        (r".*\.(?:nested_absmax|absmax|quant_map|nested_quant_map)", "weights quantised by bitsandbytes (4 bits)"),
        (r".*\.(?:SCB|weight_format)", "weights quantised by bitsandbytes (int8)"),
        (r".*\.g_idx", "weights quantised by GPTQ"),
        (r".*\.(?:qweight|qzeros)", "weights quantised as AWQ and GPTQ do"),
        (r".*\.(?:weight_packed|weight_zero_point|weight_global_scale)", "weights of compressed-tensors"),
        (r".*\.(?:weight_scale_inv|input_scale)", "FP8 weights"),
        (r".*\.(?:codebooks|codes)", "weights quantised by AQLM"),
        (r".*\.W_q", "weights quantised by HQQ"),
        (r".*\.weight\._(?:data|scale)|.*\.weight_scales", "weights quantised by quanto or EETQ"),
        (r".*\.q_(?:weight|invperm|scale_max|group_map)", "weights quantised by EXL2"),
        (r".*\.trellis", "weights quantised by EXL3"),
        (r".*\.biases", "weights quantised by MLX"),
    )
)
_EYES = tuple(
    (re.compile(pattern), what)
    for pattern, what in (
        (r"(?:.*\.)?vision_expert_\w+\..*|model\.vision\..*", "CogVLM, a model of pictures and text"),
        (r"(?:transformer\.)?vision\..*", "GLM-4V, a model of pictures and text"),
        (r"image_encoder\..*|mixins\.eva\..*|glm_proj\..*", "VisualGLM, a model of pictures and text"),
        (r"(?:.*\.)?(?:visual|vision_tower|vision_model|visual_encoder)\..*", "a model of pictures and text"),
        (r"(?:.*\.)?(?:audio_tower|audio_encoder|whisper)\..*", "a model of sound and text"),
    )
)
_TEXT_ALONE = "glmkit runs language models only; use the program that was published with it"
_WHOLE = ("uint8", "int8", "int16", "int32")  # types that a float model has no tensors of
_METHODS = {  # `quant_method` of transformers' quantization_config
    "bitsandbytes": "bitsandbytes", "awq": "AWQ", "gptq": "GPTQ", "compressed-tensors": "compressed-tensors",
    "fp8": "FP8", "fbgemm_fp8": "FP8 (fbgemm)", "modelopt": "modelopt",
}  # fmt: skip


@dataclass(frozen=True)
class Stranger:
    """A model that is not run: one sentence on what it is, and the next step."""

    what: str
    step: str


def stranger(names: Collection[str], dtypes: Collection[str], config: Mapping[str, object]) -> Stranger | None:
    """The stranger that has these tensors (names, and all their types) and this config ({} without one)."""
    for pattern, what in _EYES:
        if any(pattern.fullmatch(name) for name in names):
            return Stranger(what, _TEXT_ALONE)
    packed = next((what for pattern, what in _PACKED if any(pattern.fullmatch(name) for name in names)), None)
    if packed is None and any(dtype.startswith("float8") for dtype in dtypes):
        packed = "FP8 weights"
    method = _method(config)
    if packed is None and method and any(dtype in _WHOLE for dtype in dtypes):
        packed, method = f"weights quantised by {method}", ""
    if packed is None:
        return None
    if method and method not in packed:
        packed = f"{packed} ({method}, as its quantization_config says)"
    return Stranger(f"{packed}, which are not read", _UNPACK)


def other_architecture(config: Mapping[str, object]) -> Stranger | None:
    """The model of another house that a config describes, None when its kind is known here or not stated."""
    kind, classes = config.get("model_type"), config.get("architectures")
    known = {kind for family in all_families().values() for layout in family.layouts for kind in layout.model_types}
    if not isinstance(kind, str) or kind in known:
        return None
    named = f" ({classes[0]})" if isinstance(classes, list) and classes and isinstance(classes[0], str) else ""
    if any(isinstance(config.get(key), Mapping) for key in ("vision_config", "audio_config")):
        return Stranger(f"a model of the type {kind!r}{named} with eyes or ears", _TEXT_ALONE)
    return Stranger(f"a model of the type {kind!r}{named}, which is none of the GLM family", "run it with transformers")


def _method(config: Mapping[str, object]) -> str:
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    return _METHODS.get(str(method), str(method)) if method else ""
