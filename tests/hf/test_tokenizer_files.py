"""Tokenizers under the published names as files: what is saved and loaded again; code of a directory never runs."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import glmkit.hf
from glmkit.checkpoint.conversion.conversion import convert
from glmkit.errors import RequestError, TokenizerError
from glmkit.families.vocabularies import load_tokenizer
from glmkit.tokenizer.training import train_tokenizer
from support.published_scripts import RELEASES, release
from support.shared import ROOT, shared_dir

QUICK = ("chatglm-6b-v0", "chatglm3-6b")
ALL = [name if name in QUICK else pytest.param(name, marks=pytest.mark.exhaustive) for name in RELEASES]
TEXT = "你好 [MASK] hello\n world 龘𠮷"
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def opened(folder: str | Path, **options: Any) -> Any:
    return AutoTokenizer.from_pretrained(release(folder) if isinstance(folder, str) else folder, **options)


def settings(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    return values


@pytest.mark.parametrize("name", ALL)
def test_a_saved_tokenizer_is_the_same_here_and_in_the_core(name: str, tmp_path: Path) -> None:
    """Beside it there is no config, and its template may be somebody's own."""
    tokenizer = opened(name)
    tokenizer.padding_side, tokenizer.chat_template = "right", TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    for file in RELEASES[name][3].values():
        assert (tmp_path / file).read_bytes() == (release(name) / file).read_bytes()
    assert settings(tmp_path)["tokenizer_class"] == RELEASES[name][4]
    assert settings(tmp_path)["auto_map"] == settings(release(name))["auto_map"]
    again = opened(tmp_path, trust_remote_code=True)
    assert type(again) is type(tokenizer)
    assert (again.padding_side, again.chat_template) == ("right", TEMPLATE)
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    cores = load_tokenizer(tmp_path), load_tokenizer(release(name))
    assert cores[0].special == cores[1].special
    assert cores[0].encode(TEXT, specials=True) == cores[1].encode(TEXT, specials=True)


@pytest.mark.parametrize("name", ALL)
def test_copies_and_tokens_by_name(name: str) -> None:
    tokenizer = opened(name)
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.encode(TEXT) == tokenizer.encode(TEXT)
        assert type(other) is type(tokenizer)
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(TEXT)) == ids
    assert tokenizer.convert_tokens_to_string(tokenizer.tokenize(TEXT)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["chatglm2-6b", pytest.param("glm-4-9b-chat", marks=pytest.mark.exhaustive)])
def test_declared_tokens_stay(name: str, tmp_path: Path) -> None:
    """In a directory whose settings add a token, it has its id before and after saving."""
    folder, plain = tmp_path / "model", opened(name)
    shutil.copytree(release(name), folder)
    entry = {"content": "<extra>", "lstrip": False, "rstrip": False, "single_word": False, "special": True}
    values = {**settings(folder), "added_tokens_decoder": {str(len(plain)): entry}}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    tokenizer = opened(folder)
    tokenizer.save_pretrained(tmp_path / "saved")
    for one in (tokenizer, opened(tmp_path / "saved")):
        assert one.encode("a<extra>", add_special_tokens=False)[-1] == len(plain) == len(one) - 1
    assert settings(tmp_path / "saved")["added_tokens_decoder"] == values["added_tokens_decoder"]


def test_glmkits_own_format_and_its_trained_tokenizers(tmp_path: Path) -> None:
    convert(release("chatglm3-6b"), tmp_path / "own", to="glmkit")
    assert opened(tmp_path / "own").encode(TEXT) == opened("chatglm3-6b").encode(TEXT)
    trained = train_tokenizer([TEXT * 9, "one two three " * 9], vocab_size=290, kind="bpe")
    trained.save(tmp_path / "own")
    tokenizer = opened(tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "saved")
    for one in (tokenizer, opened(tmp_path / "saved")):
        assert isinstance(one, glmkit.hf.GLMKitTokenizer)
        ids = one.encode(TEXT)
        assert ids == trained.encode(TEXT, specials=True)
        assert one.decode(ids) == trained.decode(ids, skip_specials=False)
        assert one.convert_tokens_to_ids(one.tokenize(TEXT)) == ids
        batch = one(["one two one two", "one"], padding=True, return_tensors="pt")
        assert batch["input_ids"][1][0 if one.padding_side == "left" else -1] == trained.special.pad


@pytest.mark.parametrize("name", ["glm-bert", "glm-roberta"])
def test_recorded_texts_of_vocabularies_without_weights(name: str, tmp_path: Path) -> None:
    kind, files = {
        "glm-bert": ("GLMBertTokenizer", {"bert-base-uncased-vocab.txt": "vocab.txt"}),
        "glm-roberta": (
            "GLMRobertaTokenizer",
            {"roberta-vocab.json": "vocab.json", "roberta-merges.txt": "merges.txt"},
        ),
    }[name]
    for theirs, ours in files.items():
        shutil.copy(shared_dir("tokenizers", "glm-english") / theirs, tmp_path / ours)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    tokenizer = opened(tmp_path)
    assert isinstance(tokenizer, getattr(glmkit.hf, kind))
    cases = json.loads((shared_dir("fixtures", "tokenizers", name) / "cases.json").read_text())
    for case in cases["cases"]:
        assert tokenizer.encode(case["text"]) == case["ids_special"]
        assert tokenizer.decode(case["ids"]) == case["decoded"]
    assert len(tokenizer) == cases["special"]["len"]
    if name == "glm-roberta":
        assert tokenizer.bos_token_id == cases["special"]["attributes"]["bos_token_id"]


PUBLISHED = {  # as the directories of these models have it, in other white space
    "chatglm2-6b": "{% for m in messages %}{% if m['role'] == 'user' %}[Round {{ loop.index0 // 2 + 1 }}]\n\n问："
    "{{ m['content'] }}\n\n答：{% else %}{{ m['content'] }}\n\n{% endif %}{% endfor %}",
    "chatglm3-6b": "{% for m in messages %}{% if loop.first %}[gMASK]sop{% endif %}<|{{ m['role'] }}|>\n "
    "{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "glm-4-9b-chat": "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_template_beside_the_vocabulary(name: str, tmp_path: Path) -> None:
    """One that means what the core's does gives the core's ids; another one is used, or refused where it cannot be."""
    turns = [[{"role": "user", "content": text}] for text in ("你好", "hello there")]
    folder = tmp_path / "model"
    shutil.copytree(release(name), folder)
    (folder / "chat_template.jinja").write_text(PUBLISHED[name])
    published, own = opened(folder), opened(name)
    assert published.chat_template == PUBLISHED[name]
    for options in ({}, {"return_assistant_tokens_mask": True}, {"padding": True, "return_tensors": "pt"}):
        found, wanted = (one.apply_chat_template(turns, **options)["input_ids"] for one in (published, own))
        assert (found == wanted).all() if "padding" in options else found == wanted
    own.chat_template = TEMPLATE
    assert own.apply_chat_template(turns[0], return_dict=False) == own.encode("你好", add_special_tokens=False)
    own.chat_template = "[gMASK]" + TEMPLATE
    if name == "glm-4-9b-chat":
        assert own.apply_chat_template(turns[0])["input_ids"][0] == own.gmask_token_id
    else:
        with pytest.raises(RequestError, match="gMASK"):
            own.apply_chat_template(turns[0])


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm2-6b", "chatglm3-6b", "glm-4-9b-chat"])
def test_the_jinja_form_writes_what_the_core_does_or_refuses(name: str) -> None:
    """Every order of roles up to four messages, by transformers' own renderer."""
    tokenizer, written = opened(name), 0
    render = PreTrainedTokenizerBase.apply_chat_template
    orders = [roles for count in range(1, 5) for roles in product(("system", "user", "assistant"), repeat=count)]
    for roles, prompt in product(orders, (True, False)):
        turns = [{"role": role, "content": f"{role} {number} \n"} for number, role in enumerate(roles)]
        options = {"tokenize": False, "add_generation_prompt": prompt}
        try:
            found = render(tokenizer, turns, **options)
        except TemplateError:
            continue
        written += 1
        assert found == tokenizer.apply_chat_template(turns, **options)
    assert written == (8 if name in ("chatglm-6b", "chatglm2-6b") else 2 * len(orders))


def test_keywords() -> None:
    """Those of the hub have no effect here; facts of the files are not overruled; a token must be one."""
    hub = {"revision": "main", "cache_dir": "/nowhere", "resume_download": True, "use_fast": False}
    tokenizer = opened("chatglm2-6b", **hub, padding_side="right", pad_token="</s>", model_max_length=7)
    assert tokenizer(["a", "b c d"], padding=True)["input_ids"][0][-1] == 2
    assert len(tokenizer("a b c d e f g h", truncation=True)["input_ids"]) == 7
    with pytest.raises(TokenizerError, match="<nothing>"):
        opened("chatglm2-6b", pad_token="<nothing>")
    with pytest.raises(RequestError, match="subfolder"):
        AutoTokenizer.from_pretrained(release("chatglm2-6b").parent, subfolder="chatglm2-6b")
    with pytest.raises(RequestError, match="num_image_tokens"):
        opened("chatglm-6b", num_image_tokens=20000)
    assert opened("chatglm-6b-v0", num_image_tokens=20000).eos_token_id == 150005


def test_one_class_for_three_generations() -> None:
    for name in ("chatglm-6b", "chatglm2-6b", "chatglm3-6b"):
        tokenizer = opened(name)
        assert isinstance(tokenizer, glmkit.hf.ChatGLMTokenizer)
        assert type(tokenizer).__name__ == "ChatGLMTokenizer"
    assert not isinstance(opened("glm-4-9b-chat"), glmkit.hf.ChatGLMTokenizer)


# --- code of a directory ----------------------------------------------------------------------------------------------

AUDIT = """
import sys
import glmkit.hf
import transformers
from glmkit.errors import RequestError

folder, seen, refused, loaded = sys.argv[1], [], [], []

def hook(event, arguments):
    text = " ".join(str(argument) for argument in arguments[:2])
    if event in ("exec", "compile", "import") and (folder in text or "transformers_modules" in text):
        seen.append((event, text[:200]))

sys.addaudithook(hook)
for name in dir(transformers):
    if not name.startswith("Auto"):
        continue
    try:
        getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
        loaded.append(name)
    except RequestError:
        refused.append(name)
    except Exception as error:  # an Auto class that looks for other files, or for libraries that are not there
        assert "was executed" not in str(error), error
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).float()
model.chat(tokenizer, "hi", do_sample=False, max_new_tokens=2)
try:
    model.generate(**tokenizer("hi", return_tensors="pt"), custom_generate=folder, trust_remote_code=True)
except RequestError:
    refused.append("generate")
try:
    transformers.pipeline("text-generation", model=folder, trust_remote_code=True)
except RequestError:
    refused.append("pipeline")
assert seen == [], seen
assert not any("transformers_modules" in name for name in sys.modules)
wanted = {"AutoConfig", "AutoTokenizer", "AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"}
assert wanted <= set(loaded), loaded
assert {"AutoModelForTokenClassification", "AutoProcessor", "generate", "pipeline"} <= set(refused), refused
transformers.AutoConfig.from_pretrained(sys.argv[2], trust_remote_code=True)
assert seen, "the hook must see the code of another model"
"""


def other_model(folder: Path) -> Path:
    """A directory of no family of ours, with code."""
    folder.mkdir()
    values = {"model_type": "foreign", "auto_map": {"AutoConfig": "configuration_foreign.Foreign"}}
    (folder / "config.json").write_text(json.dumps(values))
    code = "from transformers import PreTrainedConfig\n\nclass Foreign(PreTrainedConfig):\n    model_type = 'foreign'\n"
    (folder / "configuration_foreign.py").write_text(code)
    return folder


@pytest.mark.parametrize("name", ["chatglm3-6b", pytest.param("chatglm-6b", marks=pytest.mark.exhaustive)])
def test_no_code_of_a_directory_is_executed(name: str, tmp_path: Path) -> None:
    """Not by any Auto class, a pipeline or generate, in a directory that names code for all of them."""
    folder = tmp_path / "model"
    shutil.copytree(release(name), folder)
    kinds = {"AutoConfig": "configuration_chatglm", "AutoProcessor": "processing_chatglm"}
    autos = [auto for auto in dir(glmkit.hf.transformers) if auto.startswith("Auto")]
    mapped: dict[str, Any] = {auto: f"{kinds.get(auto, 'modeling_chatglm')}.X" for auto in autos}
    mapped["AutoTokenizer"] = ["tokenization_chatglm.X", None]
    values = json.loads((folder / "config.json").read_text())
    pipelines = {"text-generation": {"impl": "modeling_chatglm.X", "pt": ["AutoModel"], "tf": [], "default": {}}}
    (folder / "config.json").write_text(json.dumps({**values, "auto_map": mapped, "custom_pipelines": pipelines}))
    (folder / "processor_config.json").write_text(json.dumps({"auto_map": mapped}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": mapped}))
    (folder / "custom_generate").mkdir()
    for code in ("processing_chatglm.py", "custom_generate/generate.py"):
        (folder / code).write_text("raise RuntimeError('code of a model directory was executed')\n")
    foreign = other_model(tmp_path / "other")
    subprocess.run([sys.executable, "-W", "ignore", "-c", AUDIT, str(folder), str(foreign)], check=True, timeout=180)


def test_code_of_other_models_is_left_to_transformers(tmp_path: Path) -> None:
    made = glmkit.hf.transformers.AutoConfig.from_pretrained(other_model(tmp_path / "other"), trust_remote_code=True)
    assert type(made).__name__ == "Foreign"


@pytest.mark.exhaustive
@pytest.mark.skipif(not os.environ.get("GLMKIT_TRANSFORMERS"), reason="GLMKIT_TRANSFORMERS names no other transformers")
def test_with_another_transformers() -> None:
    """The tests of tokenizers with the transformers that lies in the folder GLMKIT_TRANSFORMERS."""
    path = os.pathsep.join([os.environ["GLMKIT_TRANSFORMERS"], str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    tests = [str(ROOT / "tests" / "hf" / f"test_{name}.py") for name in ("tokenization", "tokenizer_files")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": path, "GLMKIT_TRANSFORMERS": ""}
    subprocess.run(command, check=True, timeout=600, env=environment, cwd=ROOT)
