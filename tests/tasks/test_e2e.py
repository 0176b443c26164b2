"""E2E: the slots that a text names, by hand; the splits; several references per row, in every text task."""

import csv
import json
from pathlib import Path

import pytest

from trl_irl.commands import evaluate
from trl_irl.tasks.columns import as_prompt_completion, references_of
from trl_irl.tasks.data import TaskData
from trl_irl.tasks.e2e import load_e2e, score
from trl_irl.tasks.slots import slot_errors, slots_of
from trl_irl.tasks.splits import load_task


E2E = Path(__file__).parents[3] / "shared/data/e2e"
MILL = (
    "name[The Mill], eatType[pub], food[English], priceRange[less than £20], customer rating[low], area[riverside], "
    "familyFriendly[no], near[Café Rouge]"
)


def test_slots_of_a_representation():
    assert slots_of("name[The Mill], customer rating[5 out of 5], near[Raja Indian Cuisine]") == {
        "name": "The Mill",
        "customer rating": "5 out of 5",
        "near": "Raja Indian Cuisine",
    }
    for text in ("", "The Mill", "name[The Mill", "name[The Mill], and more"):
        with pytest.raises(ValueError, match="no meaning representation"):
            slots_of(text)
    for value in ("", " "):  # of which each text would be right
        with pytest.raises(ValueError, match=r"gives near no value"):
            slots_of(f"name[The Mill], near[{value}]")


@pytest.mark.parametrize(
    "said, friendly",
    [
        ("is not only kid friendly, but cheap", True),
        ("is not just for children", True),
        ("is not family friendly", False),
        ("isn't really a place for kids", False),
    ],
)
def test_what_is_denied_is_what_is_said(said, friendly):
    for value, right in (("yes", friendly), ("no", not friendly)):
        found = slot_errors(f"The Mill {said}.", {"name": "The Mill", "familyFriendly": value})
        assert ("familyFriendly" in found.right) == right, value


@pytest.mark.parametrize(
    "text, missing, wrong, invented",
    [
        (
            "The Mill is a cheap English pub by the river near Café Rouge. It is poorly rated and not for children.",
            "",
            "",
            "",
        ),
        (
            "Near Cafe Rouge, the mill is a riverside pub with British food under £20, 1 out of 5 stars, adults only.",
            "",
            "",
            "",
        ),
        ("The Mill is an English pub near Café Rouge.", "priceRange rating area familyFriendly", "", ""),
        (
            "The Mill is a family friendly pub near Café Rouge, with highly rated English food by the river, at a low "
            "price.",
            "",
            "rating familyFriendly",
            "",
        ),
        (
            "Mill is an expensive, low rated French pub for adults in the city centre near Café Rouge.",
            "",
            "priceRange food area",
            "",
        ),
        # Both of two levels is wrong, whichever is the right one.
        (
            "The Mill, a cheap pub by the river near Café Rouge, is not family-friendly. Its customer rating is low, "
            "5 out of 5. English food and Italian food.",
            "",
            "rating food",
            "",
        ),
    ],
)
def test_slots_of_a_text(text, missing, wrong, invented):
    found = slot_errors(text, slots_of(MILL))
    short = {"customer rating": "rating"}
    assert {short.get(x, x) for x in found.missing} == set(missing.split())
    assert {short.get(x, x) for x in found.wrong} == set(wrong.split())
    assert found.invented == tuple(invented.split())
    assert len(found.right) + len(found.missing) + len(found.wrong) == 8
    errors = len(missing.split()) + len(wrong.split())
    assert found.scores() == {"slots_right": pytest.approx(1 - errors / 8), "slot_error_rate": errors / 8}


@pytest.mark.parametrize(
    "text, invented",
    [
        ("The Mill is a restaurant near the river.", ()),  # which is its area, and what people call any such place
        ("The Mill is a coffee shop.", ("eatType",)),
        ("The Mill is a cheap Chinese place near The Ranch, good for kids, with 3 out of 5 stars.", None),
        ("The Mill", ()),
    ],
)
def test_what_a_text_adds_is_invented(text, invented):
    found = slot_errors(text, slots_of("name[The Mill], area[riverside]"))
    if invented is None:
        invented = ("near", "priceRange", "customer rating", "familyFriendly", "food")
    assert found.invented == invented
    at_river = "river" in text
    assert found.scores()["slot_error_rate"] == pytest.approx((len(invented) + (not at_river)) / 2)


@pytest.mark.parametrize("price", ["high", "more than £30"])
@pytest.mark.parametrize(
    "text, right",
    [
        ("It has a high price range and a low customer rating", True),
        ("It has a low customer rating and high prices", True),
        ("Its prices are high, its customer rating is low", True),
        ("an expensive place with a rating of 1 out of 5", True),
        ("it costs more than £30 and has one star", True),
        ("It has a high customer rating and low prices", False),
        ("an inexpensive place with 5 stars", False),
        ("It is cheap, and its customer rating is 5 out of 5", False),
    ],
)
def test_high_and_low_are_of_the_word_that_they_stand_by(price, text, right):
    slots = {"priceRange": price, "customer rating": "low"}
    assert slot_errors(text, slots).right == (tuple(slots) if right else ())


def test_a_place_names_no_other_slot():
    """Indian Cuisine is not Indian food, and Cambridge Blue no city."""
    slots = slots_of("name[Burger Palace], food[Chinese], near[Raja Indian Cuisine]")
    found = slot_errors("Burger Palace near Raja Indian Cuisine serves Chinese food.", slots)
    assert found.right == ("name", "near", "food") and not found.wrong and not found.invented


@pytest.mark.skipif(not E2E.is_dir(), reason="the E2E data is not there")
def test_people_name_nearly_all_slots():
    """
    The texts that people wrote: 8.2 % and 9.0 % of slots in error, most of them left out. The rules were written
    looking at the first file alone.
    """
    for name, rate in (("devset", 0.0824), ("testset_w_refs", 0.0896)):
        errors = slots = 0
        with (E2E / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                of_row = slots_of(row["mr"])
                found = slot_errors(row["ref"], of_row)
                errors += len(found.missing) + len(found.wrong) + len(found.invented)
                slots += len(of_row)
        assert errors / slots == pytest.approx(rate, abs=5e-4)
    rows = load_e2e(str(E2E))["test"]
    by_row = [[score(text, row) for text in row["references"]] for row in rows]
    for name, expected in (("slot_error_rate", 0.0769), ("slots_right", 0.9237)):  # as a report counts
        mean = sum(sum(one[name] for one in of_row) / len(of_row) for of_row in by_row) / len(by_row)
        assert mean == pytest.approx(expected, abs=5e-4)


def write_csv(path, rows, header=("mr", "ref")):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([header, *rows])


def pairs(count, texts=3, start=0):
    return [
        (f"name[Place {i}], area[riverside]", f"Place {i} is by the river, they say {text}.")
        for i in range(start, start + count)
        for text in range(texts)
    ]


def test_splits_of_the_challenges_files(tmp_path):
    write_csv(tmp_path / "devset.csv", pairs(130))
    write_csv(tmp_path / "testset_w_refs.csv", [*pairs(40, start=200), *pairs(1, start=200)])
    splits = load_e2e(str(tmp_path), seed=1)
    assert {name: len(split) for name, split in splits.items()} == {"train": 90, "validation": 100, "test": 40}
    learned, held_out = (set(splits[name]["meaning_representation"]) for name in ("train", "validation"))
    assert not learned & held_out and len(learned | held_out) == 130
    assert splits["train"]["meaning_representation"] != sorted(splits["train"]["meaning_representation"])
    tested = splits["test"]["meaning_representation"]
    assert tested != sorted(tested)  # as its file is: the first so many would be of a few places
    first = splits["test"][tested.index("name[Place 200], area[riverside]")]
    assert first["references"] == [text for _, text in pairs(1, start=200)]  # each once
    assert first["completion"] == f" {first['references'][0]}" and "name[Place 200]" in first["prompt"]
    assert load_e2e(str(tmp_path), seed=1)["train"].to_list() == splits["train"].to_list()
    assert load_e2e(str(tmp_path), seed=2)["train"].to_list() != splits["train"].to_list()
    write_csv(tmp_path / "trainset.csv", pairs(5, start=300))
    splits = load_e2e(str(tmp_path))
    assert {name: len(split) for name, split in splits.items()} == {"train": 15, "validation": 130, "test": 40}


def test_the_release_has_its_test_representations_twice(tmp_path):
    """`testset.csv` has no texts."""
    (tmp_path / "trainset.csv").write_text("mr,ref\n" + "".join(f"name[P{i}],P{i} is a place.\n" for i in range(200)))
    (tmp_path / "testset.csv").write_text("MR\nname[Q]\n")
    (tmp_path / "testset_w_refs.csv").write_text("mr,ref\nname[Q],Q is a place.\n")
    assert load_e2e(str(tmp_path))["test"]["references"][0] == ["Q is a place."]


def test_columns_as_on_the_hub(tmp_path):
    rows = [{"meaning_representation": mr, "human_reference": text} for mr, text in pairs(3)]
    several = [{"meaning_representation": "name[A]", "target": "A.", "references": ["A.", "It is A."]}]
    for name, of in (("train", rows), ("validation", rows), ("test", several)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of))
    splits = load_task(TaskData(task="e2e", dataset_name=str(tmp_path)))
    assert len(splits["train"]) == 9 and len(splits["validation"]) == 3
    assert splits["test"]["references"][0] == ["A.", "It is A."]


@pytest.mark.parametrize(
    "header, rows, message",
    [
        (("mr", "text"), [("name[A]", "A.")], "of E2E's there is no `ref`"),
        (("meaning", "ref"), [("name[A]", "A.")], "there is no `mr` or `meaning_representation`"),
        (("mr", "ref"), [("name[A]", "A."), ("name[B]", "")], "Row 1 of `train` has no text for `name.B.`"),
        (("mr", "ref"), [("A restaurant", "A.")], "Row 0 of `train`: 'A restaurant' is no meaning representation"),
        (("mr", "ref"), [("", "A.")], "has no meaning representation"),
        (("mr", "ref"), pairs(20), "has 20 representations to learn from, and 100 of them"),
    ],
)
def test_data_that_is_wrong(header, rows, message, tmp_path):
    write_csv(tmp_path / "trainset.csv", rows, header)
    with pytest.raises(ValueError, match=message):
        load_e2e(str(tmp_path))


def test_a_score_needs_its_column():
    with pytest.raises(ValueError, match="no `meaning_representation`"):
        score("A.", {"prompt": "name[A]"})


def test_the_first_reference_is_the_completion_that_is_missing():
    row = as_prompt_completion({"prompt": "x", "references": ["one", "two"]})
    assert row["completion"] == " one" and references_of(row) == ["one", "two"]
    row = as_prompt_completion({"prompt": "x", "completion": " three", "references": ["one", "two"]})
    assert row["completion"] == " three" and references_of(row) == ["one", "two"]
    for none in ({}, {"references": None}):
        assert references_of(as_prompt_completion({"prompt": "x", "completion": " three", **none})) == [" three"]


@pytest.mark.parametrize(
    "references, message",
    [
        ([], "Row 1 of `train`: its `references` are an empty list"),
        (["ten", ""], "its `references` have '' among them, which is no text"),
        (["ten", None], "its `references` have None among them"),
        ("ten", "its `references` are 'ten', and no list of texts"),
        ({"a": "ten"}, "and no list of texts"),
    ],
)
def test_references_that_are_none(references, message, model_folder, tmp_path, capsys):
    """One message, before anything is sampled, and those rows alone can be left out."""
    good = ["four", "4"] if isinstance(references, list) else references
    rows = [{"prompt": "2 + 2 =", "references": good}, {"prompt": "5 + 5 =", "references": references}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--models", str(model_folder), "--dataset_name", str(tmp_path / "rows.jsonl"), "--split", "train"]
    words += ["--output_dir", str(tmp_path / "report"), "--temperatures", "1", "--max_new_tokens", "4"]
    words += ["--metrics", "bleu", "rouge", "--num_samples", "2"]
    assert evaluate.run(words) == 2
    told = capsys.readouterr().err
    assert message.replace("Row 1", "Row 1" if isinstance(references, list) else "Row 0") in told
    assert not (tmp_path / "report").exists()
    if isinstance(references, list):
        assert evaluate.run([*words, "--on_bad_row", "skip"]) == 0
        assert "1 of 2 rows of `train` are left out" in (tmp_path / "report/report.md").read_text()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_splits_that_differ_in_columns(suffix, streaming, tmp_path):
    made = {
        "train": [{"question": "2 + 2", "answer": "007"}] * 3,
        "test": [{"question": "5 + 5", "answer": "010", "notes": "easy"}] * 2,
    }
    for name, rows in made.items():
        if suffix == "csv":
            write_csv(tmp_path / f"{name}.csv", [list(row.values()) for row in rows], list(rows[0]))
        else:
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = TaskData(dataset_name=str(tmp_path), source_column="question", target_column="answer", streaming=streaming)
    splits = load_task(data)
    assert [row["completion"] for row in splits["train"]] == [" 007"] * 3
    assert [row["notes"] for row in splits["test"]] == ["easy"] * 2


CHAT = {"prompt": [{"role": "user", "content": "2 + 2"}], "completion": [{"role": "assistant", "content": "four"}]}


@pytest.mark.parametrize(
    "row, keys",
    [
        ({"prompt": "2 + 2", "completion": " four"}, {}),
        (CHAT, {}),
        ({"q": "2 + 2", "a": "four"}, {"source_column": "q", "target_column": "a"}),
        ({"prompt": "2 + 2", "chosen": " four", "rejected": " five"}, {}),
    ],
)
def test_any_row_as_a_chat(row, keys, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    data = TaskData(dataset_name=str(tmp_path / "rows.jsonl"), chat_format=True, **keys)
    (found,) = load_task(data)["train"]
    assert {key: found[key] for key in CHAT} == CHAT


def test_what_is_no_chat(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "2 + 2 is four"}) + "\n")
    with pytest.raises(ValueError, match="no prompt to write as a user's message: the columns are text"):
        load_task(TaskData(dataset_name=str(tmp_path / "rows.jsonl"), chat_format=True))


def test_a_task_as_a_chat():
    for formatted in (True, False):
        splits = load_task(TaskData(task="arithmetic", chat_format=True, num_train_rows=2), formatted=formatted)
        (first, _) = splits["train"]
        if formatted:
            assert [message["role"] for message in first["prompt"] + first["completion"]] == ["user", "assistant"]
            assert not first["completion"][0]["content"].startswith(" ")
