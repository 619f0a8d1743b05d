"""One data set is imported, not all; and the package is whole again for who asks for more."""

from __future__ import annotations

import subprocess
import sys

import pytest

from contracts.errors import UserError
from environments.text.catalogue import dataset_names, find_dataset, package_version


def run_python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_only_what_is_needed_is_imported() -> None:
    printed = run_python(
        "import sys; from environments.text.catalogue import find_dataset as find;"
        "dataset = find('spell_backward').create({}, seed=1, size=500); dataset[0];"
        "print([name for name in ('sympy', 'matplotlib', 'numpy.testing', 'torch') if name in sys.modules])"
    )
    assert printed == "[]"


def test_the_package_is_whole_for_others() -> None:
    printed = run_python(
        "from environments.text.catalogue import find_dataset; find_dataset('spell_backward');"
        "import reasoning_gym; from reasoning_gym.algorithmic import WordLadderDataset;"
        "print(reasoning_gym.create_dataset('number_sorting', seed=1, size=1)[0]['metadata']['source_dataset'],"
        " len(reasoning_gym.factory.DATASETS))"
    )
    assert printed == f"number_sorting {len(dataset_names())}"


def test_inspection_does_not_load_the_package() -> None:
    printed = run_python(
        "import sys; from environments.text.catalogue import find_dataset; find_dataset('spell_backward');"
        "import reasoning_gym; print(hasattr(reasoning_gym, '__wrapped__'), 'sympy' in sys.modules)"
    )
    assert printed == "False False"


def test_the_same_items_as_the_package_makes() -> None:
    printed = run_python(
        "import reasoning_gym; print(reasoning_gym.create_dataset('chain_sum', seed=5, size=500)[7]['question'])"
    )
    assert find_dataset("chain_sum").create({}, seed=5, size=500)[7]["question"] == printed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the packages that the data sets import
def test_every_dataset_can_be_made_and_scores_its_own_answer() -> None:
    for name in dataset_names():
        part = {"name": "chain_sum", "weight": 1.0, "config": {}}
        dataset = find_dataset(name).create({"datasets": [part]} if name == "composite" else {}, seed=5, size=500)
        entry = dataset[0]
        assert isinstance(entry["question"], str), name
        assert entry["answer"] is None or dataset.score_answer(entry["answer"], entry) == 1.0, name


def test_an_unknown_name_is_answered_with_similar_ones() -> None:
    with pytest.raises(UserError) as caught:
        find_dataset("spell_backwards")
    assert "spell_backwards" in caught.value.asked
    assert package_version() in caught.value.found
    assert "spell_backward?" in caught.value.todo
    with pytest.raises(UserError, match="There are: ab, acre"):
        find_dataset("x")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"min_len": 3}, "It has no parameter min_len"),
        ({"seed": 3}, "seed and size follow from the run's seed"),
        ({"min_word_len": 0}, "min_word_len must be positive"),
        ({"min_word_len": "x"}, "It refuses them"),
        ({"data_file": "none.txt"}, "It refuses them"),
    ],
)
def test_wrong_parameters_are_explained(parameters: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        find_dataset("spell_backward").create(parameters, seed=0, size=500)
    assert words in caught.value.found
    assert "min_word_len, max_word_len" in caught.value.todo
