"""Questions about images: words, easy-VQA from its wheel, VQA v2 from files in its format."""

import json
import sys
from importlib import metadata

import numpy as np
import pytest
import torch
from gfo_lab import ledger
from gfo_lab.experiments import vqa_v2 as task
from gfo_lab.experiments.easy_vqa import blind, choose_sigma
from gfo_lab.run import run
from gfo_lab.vqa import easy_vqa, stem, vqa_v2
from gfo_lab.vqa.answers import accuracy, leave_one_out, normal, soft_target
from gfo_lab.vqa.questions import Words, add_noise, numbers_of
from torch.utils.data import DataLoader

import gfo

# --- words, answers, noise


def test_words_become_numbers_and_unknown_ones_are_counted_once():
    words = Words.of(["Is the dog-house red?", "What's red/blue?"])
    assert words.number == {
        w: i for i, w in enumerate("blue dog house is red the whats".split(), 2)
    }
    assert len(words) == 9  # padding and unknown too
    assert words.encode(["is the RED", "red red red red"], 4).tolist() == [[5, 7, 6, 0], [6] * 4]
    with pytest.warns(UserWarning, match="2 words .* 'zebra' first") as seen:
        out = words.encode(["zebra is red", "an is", "red is"], 3)
    assert len(seen) == 1 and out.tolist() == [[1, 5, 6], [1, 5, 0], [6, 5, 0]]


@pytest.mark.parametrize("text", ["", " ?! "])
def test_an_empty_question_and_an_unknown_answer_are_named(text):
    with pytest.raises(ValueError, match="question 1 is empty"):
        Words(["is"]).encode(["is", text], 3)
    with pytest.raises(ValueError, match="answer 1, 'pink', is none of the 2"):
        numbers_of(["red", "pink"], ["blue", "red"])


def test_noise_is_an_images_own_and_leaves_padding_alone():
    image = torch.randn(4, 3, 2)
    image[:, 2] = 0
    image[1] = image[0]
    one, two = (add_noise(image, s, [7, 7, 9, 3]) for s in (1.0, 2.0))
    assert torch.equal(one[0], one[1]) and (one[:, 2] == 0).all()
    torch.testing.assert_close(two - image, 2 * (one - image))
    far = add_noise(torch.ones(500, 4, 4), 3.0, range(500))
    assert float((far - 1).std()) == pytest.approx(3, abs=0.1)  # 8,000 draws: error 0.024


# --- what people answered


def test_accuracy_of_a_hand_worked_example_of_ten_people():
    people = ["2", "two", "2.", "2", "3", "three", "4", "2 dogs", "many", "3"]
    # "2" is given by people 0, 2 (its full stop dropped) and 3: "two" is not rewritten for people.
    # Leaving one of the three out, 2 of 9 match: 2/3. Leaving one of the other seven out, 3: 1.
    assert leave_one_out("two", people) == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    assert leave_one_out("3", people) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert leave_one_out("4", people) == pytest.approx(0.3)
    assert leave_one_out("5", people) == 0
    assert leave_one_out("yes", ["yes"] * 10) == 1
    # the published evaluator leaves a blank where a mark was, so that "yes!" is never "yes"
    assert leave_one_out("yes", ["yes", "yes!"] + ["no"] * 8) == pytest.approx(9 / 10 / 3)
    # people who agree are taken at their word, full stop included
    assert leave_one_out("yes.", ["yes."] * 10) == 0


def test_soft_targets_are_the_leave_one_out_accuracy_of_each_answer():
    number = {"red": 0, "2": 1, "dog": 2, "cat": 3, "on left": 4}
    people = ["Red", "red!", "two", "the dog", "a dog", "dog", "on the left"] + ["pink"] * 3
    assert soft_target(people, number).tolist() == pytest.approx([0.6, 0.3, 0.9, 0, 0.3])
    plain = ["red"] * 2 + ["2"] + ["dog"] * 3 + ["cat"] * 4
    want = [leave_one_out(answer, plain) for answer in ("red", "2", "dog", "cat")]
    assert soft_target(plain, number).tolist() == pytest.approx([*want, 0])


@pytest.mark.parametrize(
    "text, want",
    [
        ("The  Dogs.", "dogs"), ("1,000", "1000"), ("3.5", "3.5"), ("t-shirt", "t shirt"),
        ("dont know", "don't know"), ("Ten", "10"), ("yes, sir", "yes sir"), ("lets go", "lets go"),
    ],
)  # fmt: skip
def test_normal_form_of_an_answer(text, want):
    assert normal(text) == want


# --- easy-VQA


@pytest.fixture(scope="module")
def easy(tmp_path_factory):
    """(splits, what the stem was given): the real questions, with random features."""
    try:
        metadata.distribution("easy-vqa")
    except metadata.PackageNotFoundError:
        pytest.skip("easy-vqa is not installed: pip install easy-vqa==1.0")
    given = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stem, "features", lambda *a: given.extend(a) or torch.randn(5000, 16, 64))
        return gfo.data.load("easy-vqa", root=tmp_path_factory.mktemp("easy")), given


def test_the_stem_sees_answers_about_training_images_only(easy):
    splits, (images, train, labels, seed) = easy
    assert images.shape == (5000, 3, 64, 64) and 0 <= images.min() < images.max() <= 1
    assert set(train.tolist()) >= set(splits.about["train"]["image"]) and len(train) == 3600
    for kind, y in labels.items():
        known = set((y >= 0).nonzero()[:, 0].tolist())
        asked = splits.about["train"][splits.about["train"]["kind"] == kind]
        assert known == set(asked["image"]) <= set(train.tolist())
        assert int(y.max()) + 1 == asked["answer"].nunique()


def test_the_stem_learns_standardises_and_never_reads_other_labels(monkeypatch):
    monkeypatch.setattr(stem, "EPOCHS", 4)
    gen = torch.Generator().manual_seed(0)
    y = torch.randint(2, (300,), generator=gen)
    images = torch.rand(300, 3, 64, 64, generator=gen) / 2 + y[:, None, None, None] / 4
    train = torch.arange(200)
    tokens = stem.features(images, train, {"bright": y}, 0)
    hidden = torch.where(torch.arange(300) < 200, y, -1)
    assert torch.equal(tokens, stem.features(images, train, {"bright": hidden}, 0))
    assert not torch.equal(tokens, stem.features(images, train, {"bright": y}, 1))
    seen = tokens[train].flatten(0, 1)
    active = seen.std(0) > 0.5  # a unit that never fires stays 0
    torch.testing.assert_close(seen.mean(0), torch.zeros(64), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        seen.std(0)[active], torch.ones(int(active.sum())), rtol=0, atol=1e-3
    )
    pooled = tokens.mean(1)
    center = [pooled[train][y[train] == k].mean(0) for k in (0, 1)]
    near = (pooled[200:] - center[1]).norm(dim=1) < (pooled[200:] - center[0]).norm(dim=1)
    assert (near == (y[200:] == 1)).float().mean() > 0.95


def test_easy_vqa_is_whole_and_held_out_by_image(easy):
    splits, _ = easy
    about = splits.about
    assert len(about["train"]) + len(about["valid"]) == 38_575 and len(about["test"]) == 9_673
    images = {name: set(table["image"]) for name, table in about.items()}
    assert len(images["valid"]) == 400 and not images["valid"] & images["train"]
    assert splits.classes == 13 and len(splits.words) == 28
    for name in about:
        (image, words), y = getattr(splits, name)
        assert image.shape[1:] == (16, 64) and words.shape[1] == 9
        assert len(image) == len(words) == len(y) == len(about[name])
        assert [splits.answers[k] for k in y[:50]] == list(about[name]["answer"][:50])
    (image, _), _ = splits.train
    assert float(image.std()) == pytest.approx(1, abs=0.02)  # weighted by questions an image
    same = about["train"].index[about["train"]["image"] == about["train"]["image"][0]]
    assert all(torch.equal(image[same[0]], image[i]) for i in same)
    assert "easy_vqa" not in sys.modules


def test_the_blind_floor_is_the_published_one(easy):
    found = blind(easy[0])
    # domain notes: 67.0 / 82.5 / 34.8 / 12.0 from all training images; 400 are held out here
    assert found["all"] == pytest.approx(0.670, abs=0.005)
    assert found["yes/no"] == pytest.approx(0.825, abs=0.005)
    assert found["shape"] < 0.4 and found["colour"] < 0.2


def test_damaged_features_are_named(tmp_path):
    path, train = tmp_path / "features.pt", torch.arange(7)
    torch.save(torch.ones(7, 16, 64), path)
    with pytest.raises(ValueError, match="does not hold 8 × 16 × 64"):
        easy_vqa.read_features(path, 8, train)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged") as error:
        easy_vqa.read_features(path, 7, train)
    assert "\n" not in str(error.value)


def test_faults_a13_features_that_no_stem_makes_are_named(tmp_path):
    path, good = tmp_path / "features.pt", torch.randn(50, 16, 64)
    train = torch.arange(40)
    seen = good[train].flatten(0, 1)
    good = (good - seen.mean(0)) / seen.std(0)
    for bad, message in (
        (good.clone().index_fill_(0, torch.tensor(45), float("nan")), "holds NaN: delete it"),
        (good * torch.nan, "holds NaN: delete it"),
        (torch.zeros_like(good), "not standardised: delete it"),
        (2 * good, "not standardised"),
        (good + 1, "not standardised"),
    ):
        torch.save(bad, path)
        with pytest.raises(ValueError, match=message) as error:
            easy_vqa.read_features(path, 50, train)
        assert "\n" not in str(error.value)
    torch.save(good, path)
    assert torch.equal(easy_vqa.read_features(path, 50, train), good)


def test_a_missing_wheel_or_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(easy_vqa, "wheel", lambda: tmp_path)
    (tmp_path / "answers.txt").write_text("yes\nno")
    with pytest.raises(FileNotFoundError, match="train/questions.json"):
        gfo.data.load("easy-vqa", root=tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "questions.json").write_text('[["is it')
    with pytest.raises(ValueError, match=r"questions\.json' is damaged, .*: install easy-vqa anew"):
        gfo.data.load("easy-vqa", root=tmp_path)
    with pytest.raises(FileNotFoundError, match="test/images/3.png is missing or damaged"):
        easy_vqa.picture(tmp_path, "test", 3)
    monkeypatch.undo()

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(FileNotFoundError, match="pip install easy-vqa==1.0"):
        gfo.data.load("easy-vqa", root=tmp_path)


def test_sigma_is_the_first_noise_that_takes_a_quarter():
    assert choose_sigma([1.0, 0.99, 0.9, 0.8, 0.75, 0.7, 0.6]) == 4.0
    assert choose_sigma([0.8] * 7) is None


# --- VQA v2, a fixture in the official format


def write_v2(root):
    """20 training questions about 4 images, 3 about 2 to test; people say yes, or 2."""
    folder = root / "vqa-v2"
    for part, images, each in (("train2014", 4, 5), ("val2014", 2, 2)):
        (folder / part).mkdir(parents=True)
        asked, said = [], []
        for number in range(images * each):
            image = number % images + 1
            question = "Is it red?" if number % 2 else "How many dogs?"
            asked.append(dict(question_id=number, image_id=image, question=question))
            usual, other = ("yes", "no") if number % 2 else ("2", "two")
            given = [dict(answer=usual)] * 8 + [dict(answer=other)] * 2
            kind = "yes/no" if number % 2 else "number"
            said.append(
                dict(question_id=number, image_id=image, question_type="is it", answer_type=kind,
                     multiple_choice_answer=usual, answers=given)
            )  # fmt: skip
        name = f"v2_OpenEnded_mscoco_{part}_questions.json"
        (folder / name).write_text(json.dumps({"questions": asked}))
        name = f"v2_mscoco_{part}_annotations.json"
        (folder / name).write_text(json.dumps({"annotations": said}))
        for image in range(1, images + 1):
            save_features(folder, part, image, np.random.rand(2048, 3 + image))
    return folder


def save_features(folder, part, image, x, key="x"):
    np.savez(folder / part / f"COCO_{part}_{image:012d}.jpg.npz", **{key: x})


def test_vqa_v2_from_official_files(tmp_path):
    folder = write_v2(tmp_path)
    splits = gfo.data.load("vqa-v2", root=tmp_path)
    assert splits.answers == ["2", "yes"] and len(splits.words) == 2 + 6
    assert {n: len(t) for n, t in splits.about.items()} == {"train": 15, "valid": 5, "test": 4}
    assert not set(splits.about["train"]["image"]) & set(splits.about["valid"]["image"])
    (image, words), target = splits.train[0]
    row = splits.about["train"].iloc[0]
    assert image.shape == (100, 2048) and words.shape == (14,)
    assert int((image != 0).any(1).sum()) == 3 + row["image"]
    with np.load(folder / "train2014" / f"COCO_train2014_{row['image']:012d}.jpg.npz") as content:
        torch.testing.assert_close(image[2], torch.from_numpy(content["x"][:, 2]).float())
    # "two" is "2": ten of ten; "no" is outside the vocabulary
    assert target.tolist() == ([1, 0] if row["kind"] == "number" else [0, 1])
    (folder / "answer_dict.json").write_text(json.dumps([{"no": 1, "yes": 0}, {"0": "yes"}]))
    again = gfo.data.load("vqa-v2", root=tmp_path)
    assert again.answers == ["yes", "no"]
    first = list(again.about["train"]["kind"]).index("yes/no")
    assert again.train[first][1].tolist() == pytest.approx([1, 0.6])  # eight and two of ten
    found = accuracy(["yes"] * 4, again.about["test"])
    assert found == {"all": 0.5, "number": 0, "yes/no": 1}


def test_a_masked_mcan_learns_from_vqa_v2s_rows(tmp_path):
    write_v2(tmp_path)
    splits = gfo.data.load("vqa-v2", root=tmp_path)
    torch.manual_seed(0)
    model, sites = gfo.models.mcan(
        len(splits.words), splits.classes, features=2048, layers=1, width=8, heads=2, embedding=6
    )
    batches = DataLoader(splits.train, batch_size=8)
    (x, _) = next(iter(batches))
    net = gfo.attach(model, sites, "gflowout", x, likelihood=gfo.SoftTargets())
    history = gfo.fit(net, batches, epochs=1, progress=False, device="cpu")
    assert history.notna().all().all()
    assert gfo.predict(net, x, samples=2).shape == (8, 2)


def spoil(folder, what):
    questions = folder / "v2_OpenEnded_mscoco_val2014_questions.json"
    annotations = folder / "v2_mscoco_train2014_annotations.json"
    content = json.loads(annotations.read_text())
    if what == "missing file":
        questions.unlink()
        annotations.unlink()
    elif what == "missing folder":
        (folder / "val2014").rename(folder / "elsewhere")
    elif what == "truncated":
        questions.write_text(questions.read_text()[:99])
    elif what == "wrong key":
        questions.write_text(json.dumps({"question": []}))
    elif what == "column":
        del content["annotations"][3]["answers"]
    elif what == "no annotation":
        del content["annotations"][3]
    elif what == "two images":
        content["annotations"][3]["image_id"] = 1000
    elif what == "dictionary":
        (folder / "answer_dict.json").write_text("[1, 2]")
    elif what == "empty question":
        table = json.loads(questions.read_text())
        table["questions"][2]["question"] = "?"
        questions.write_text(json.dumps(table))
    if annotations.exists():
        annotations.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "what, message",
    [
        ("missing file", "val2014_questions.json.*|train2014_annotations.json, v2_OpenEnded"),
        ("missing folder", "lacks, under .*: val2014$"),
        (
            "truncated",
            "v2_OpenEnded_mscoco_val2014_questions.json' is damaged, .*: download it anew",
        ),
        ("wrong key", "has no key 'questions'; it has: question"),
        ("column", "train2014_annotations.json lacks answers"),
        ("no annotation", "question 3 of v2_OpenEnded_mscoco_train2014_questions.json has no"),
        ("two images", "question 3 is about two images"),
        ("dictionary", "answer_dict.json is not a list of two dicts"),
        ("empty question", "question 2 is empty"),
    ],
)
def test_bad_files_of_vqa_v2_are_named_in_one_line(what, message, tmp_path):
    spoil(write_v2(tmp_path), what)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        gfo.data.load("vqa-v2", root=tmp_path)
    assert "\n" not in str(error.value)


def test_bad_feature_files_of_vqa_v2_are_named_in_one_line(tmp_path):
    folder = write_v2(tmp_path)
    path = folder / "train2014" / "COCO_train2014_000000000001.jpg.npz"

    def ask(message, error=ValueError):
        with pytest.raises(error, match=message) as found:
            vqa_v2.image_tokens(folder / "train2014", "train2014", 1)
        assert "\n" not in str(found.value)

    path.write_bytes(path.read_bytes()[:500])
    ask("COCO_train2014_000000000001.jpg.npz is damaged")
    save_features(folder, "train2014", 1, np.ones((2048, 4)), key="features")
    ask("has no array 'x'; it has: features")
    save_features(folder, "train2014", 1, np.ones((4, 2048)))
    ask(r"has shape \(4, 2048\), needs \(2048, n\)")
    save_features(folder, "train2014", 1, np.full((2048, 4), np.nan))
    ask("holds NaN")  # faults A13
    path.unlink()
    ask("lacks the image features train2014/COCO", FileNotFoundError)


@pytest.mark.parametrize("method", ["gflowout", "concrete", "ensemble"])
def test_table_2_runs_for_those_who_have_the_files(method, tmp_path):
    """Kinds weigh by their questions, and a row of the ledger finds its number."""
    write_v2(tmp_path)
    how = dict(methods=[method], dataset="vqa-v2", profile="quick", root=tmp_path)
    (row,) = run("easy-vqa", **how, out=tmp_path / "out", progress=False).to_dict("records")
    for tail in ("", "_noisy"):
        kinds = [row[f"accuracy_{kind}{tail}"] for kind in ("yes_no", "number")]
        assert all(0 <= accuracy <= 1 for accuracy in kinds) and row[f"nll{tail}"] > 0
        assert row[f"accuracy_all{tail}"] == pytest.approx(sum(kinds) / 2)  # two questions each
    for place in ledger.TABLES["Table 2"].experiments.values():
        for metric in ledger.TABLES["Table 2"].metrics.values():
            known = metric.removesuffix("_other") + place.get("suffix", "")
            assert "other" in metric or known in row


def test_feature_noise_belongs_to_the_image_whatever_block_it_is_in():
    image = torch.ones(3, 2, 4)
    image[0, 1] = 0  # padding
    one = task.noisy(image, 2.0, [7, 8, 7])
    assert torch.equal(one[1:], task.noisy(image[1:], 2.0, [8, 7]))
    assert torch.equal(one[0, 0], one[2, 0]) and not torch.equal(one[1], one[2])
    assert torch.equal(one[0, 1], torch.zeros(4))
    assert torch.equal(task.noisy(image, 0.0, [7, 8, 7]), image)
