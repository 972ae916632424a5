"""The standard library's source, and its split without leaks."""

import random
from pathlib import Path

import pytest

from glmkit.demo.corpus import Collected, Module, Split, collect, split
from glmkit.errors import DataError


@pytest.fixture(scope="module")
def library() -> Collected:
    return collect()


@pytest.fixture(scope="module")
def parts(library: Collected) -> Split:
    return split(library.modules)


def write(root: Path, name: str, content: bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_collects_source_and_counts_what_it_cannot_read(tmp_path):
    write(tmp_path, "b.py", b"x = 1\r\ny = 2\n")
    write(tmp_path, "a/c.py", b"z = 3\n")
    write(tmp_path, "latin.py", b"# -*- coding: latin-1 -*-\ns = '\xe9'\n")
    write(tmp_path, "a/__init__.py", b"\n")
    for name in ("test/t.py", "a/tests/t.py", "idlelib/i.py", "site-packages/s.py", "pydoc_data/topics.py"):
        write(tmp_path, name, b"left = 'out'\n")
    write(tmp_path, "_sysconfigdata__linux.py", b"build = {}\n")
    write(tmp_path, "config-3.11/c.py", b"c = 1\n")
    write(tmp_path, "note.txt", b"no source\n")
    found = collect(tmp_path)
    assert found.modules == (Module("a/c.py", "z = 3\n"), Module("b.py", "x = 1\ny = 2\n"))
    assert found.unreadable == ("latin.py",)
    assert found.empty == ("a/__init__.py",)


def test_nothing_to_read_says_so(tmp_path):
    with pytest.raises(DataError, match="no Python source found"):
        collect(tmp_path)


def test_the_library_is_there_without_tests_and_idle(library):
    names = [module.name for module in library.modules]
    assert names == sorted(names)
    assert {"os.py", "json/decoder.py", "encodings/cp1252.py"} <= set(names)
    directories = {part for name in names for part in name.split("/")[:-1]}
    assert not directories & {"test", "tests", "idlelib", "site-packages", "__pycache__"}
    assert sum(len(module.text) for module in library.modules) > 5_000_000


@pytest.mark.exhaustive
def test_all_tables_of_encodings_are_one_cluster(library, parts):
    tables = {
        module.name
        for module in library.modules
        if module.name.startswith("encodings/") and "decoding_table" in module.text
    }
    assert len(tables) > 60
    assert [tables & set(cluster) for cluster in parts.clusters if tables & set(cluster)] == [tables]


def test_near_copies_of_the_library_are_together(parts):
    cluster = next(set(cluster) for cluster in parts.clusters if "lzma.py" in cluster)
    assert "bz2.py" in cluster


def test_every_module_is_in_one_cluster_and_no_cluster_straddles(library, parts):
    everywhere = [name for cluster in parts.clusters for name in cluster]
    assert sorted(everywhere) == [module.name for module in library.modules]
    sets = [{module.name for module in part} for part in (parts.train, parts.validation, parts.held_out)]
    sets[0] |= set(parts.copies)
    assert set.union(*sets) == set(everywhere)
    for cluster in parts.clusters:
        assert [bool(names & set(cluster)) for names in sets].count(True) == 1


def test_shares_are_as_stated_and_nothing_is_lost(library, parts):
    facts = parts.facts(unreadable=len(library.unreadable))
    assert facts["unreadable_files"] == len(library.unreadable)
    total = sum(len(module.text) for module in library.modules)
    assert 0.075 < facts["held_out_characters"] / total <= 0.08
    assert 0.035 < facts["validation_characters"] / total <= 0.04
    assert (
        facts["train_modules"] + facts["validation_modules"] + facts["held_out_modules"] + facts["copies_left_out"]
        == facts["modules"]
    )
    assert facts["modules"] == len(library.modules)
    assert 0 < facts["held_out_seen"] < 0.4  # idioms: five words are short
    # No module may be most of a set.
    for part in (parts.validation, parts.held_out):
        assert max(len(module.text) for module in part) < 0.26 * sum(len(module.text) for module in part)


def modules(count: int) -> list[Module]:
    rng = random.Random(0)
    words = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(400)]
    return [Module(f"m{number:03}.py", " ".join(rng.choices(words, k=200))) for number in range(count)]


def test_split_is_by_name_and_seed():
    made = modules(100)
    first, again, other = split(made), split(list(made)), split(made, seed=1)
    assert first == again
    assert {module.name for module in first.held_out} != {module.name for module in other.held_out}
    assert (len(first.held_out), len(first.validation), len(first.train)) == (8, 4, 88)


def test_planted_copies_follow_their_original_and_leave_training():
    made = modules(150)
    copies = [Module(f"copy_of_{module.name}", module.text + f" tail_{n} end") for n, module in enumerate(made)]
    for seed in range(3):
        parts = split(made + copies, seed=seed)
        for part in (parts.validation, parts.held_out):
            names = {module.name.removeprefix("copy_of_") for module in part}
            assert len(part) == 2 * len(names)
        assert len({module.name.removeprefix("copy_of_") for module in parts.train}) == len(parts.train)
        assert len(parts.copies) == len(parts.train)
    kept = split(made + copies, keep_copies=True)
    assert kept.copies == ()
    assert len(kept.train) + len(kept.validation) + len(kept.held_out) == 300


def test_too_little_text_says_so():
    with pytest.raises(DataError, match="3 modules are too few or too alike"):
        split(modules(3))
