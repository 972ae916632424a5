"""Near-duplicates: found whatever was edited, and only where there is something in common."""

import random

import numpy as np

from glmkit.demo.clusters import clusters, copies, overlap, shingles

WORDS = [f"word_{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(500)]


def prose(seed: int, words: int = 400) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def test_shingles_count_words_and_signs():
    two, short, none = shingles(["a = b + c - d", "a b", ""], width=5)
    assert len(two) == 3  # seven words
    assert len(short) == 1
    assert len(none) == 0


def test_numbers_are_all_the_same_word_but_names_are_not():
    first, second, third = shingles(["x = 0x1F; y = 20", "x = 7; y = 3", "x = 7; z = 3"], width=5)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)


def test_hashes_do_not_depend_on_the_other_texts():
    alone = shingles([prose(1)])[0]
    assert np.array_equal(alone, shingles([prose(2), prose(3), prose(1)])[2])


def test_overlap_is_that_of_the_sets():
    texts = [prose(1), prose(1, 300) + prose(2, 100), prose(3), ""]
    found = overlap(texts)
    sets = [set(made.tolist()) for made in shingles(texts)]
    assert found.sizes.tolist() == [len(made) for made in sets]
    assert found.shared.tolist() == [[len(a & b) for b in sets] for a in sets]
    both = len(sets[0] & sets[1])
    assert found.jaccard()[0, 1] == both / len(sets[0] | sets[1])
    assert found.containment()[0, 1] == both / min(len(sets[0]), len(sets[1]))
    assert found.jaccard()[2, 3] == 0


def test_planted_near_copies_are_found_and_nothing_else():
    base = prose(1).split()
    edited = base.copy()
    for place in range(0, 400, 25):  # every 25th word: a fifth of the shingles
        edited[place] = "changed"
    part = " ".join(base[:120]) + " " + prose(4, 60)
    chain = part + " " + prose(5, 20)  # like `part`, hence in its cluster, whatever it shares with the others
    texts = [prose(9), " ".join(base), prose(8), " ".join(edited), part, chain, prose(7)]
    assert clusters(overlap(texts)) == [[0], [1, 3, 4, 5], [2], [6]]


def test_thresholds_are_those_asked_for():
    texts = [prose(1, 200) + " " + prose(2, 200), prose(1, 200) + " " + prose(3, 200)]
    found = overlap(texts)
    assert 0.3 < found.jaccard()[0, 1] < 0.36
    assert clusters(found) == [[0, 1]]
    assert clusters(found, jaccard=0.4, containment=0.6) == [[0], [1]]


def test_copies_keep_the_largest_and_what_is_new():
    whole, part, other = prose(1), prose(1, 200), prose(1, 150) + " " + prose(2, 300)
    found = overlap([part, whole, other])
    assert copies(found, [0, 1, 2]) == [0]  # `other` is two thirds new; `part` is all in `whole`


def test_twins_keep_one():
    assert copies(overlap([prose(1), prose(1), prose(1)]), [0, 1, 2]) == [1, 2]


def test_seen_is_the_share_of_shingles_found_elsewhere():
    found = overlap([prose(1, 204), prose(1, 104), prose(2)])
    assert found.seen([0], [1]) == 100 / 200
    assert found.seen([1], [0]) == 1.0
    assert found.seen([2], [0, 1]) == 0.0
    assert found.seen([], [0]) == 0.0


def test_no_texts_no_clusters():
    assert clusters(overlap([])) == []
